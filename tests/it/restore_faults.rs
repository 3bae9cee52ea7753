//! A database that refuses: what it refuses for a while arrives, what it refuses for good is kept and can be tried again.

use firebank::firestore::{DeadLetters, OwnedChange, Precondition};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, When};
use tonic::Code;

use crate::cli_support::*;

fn status(code: Code) -> Effect {
    Effect::Status(code, "trouble on demand".to_owned())
}

/// Everything at once that a database under load does: writes that are refused, requests that fail, connections that are cut,
/// requests that are too large.
fn trouble(seed: u64) -> FaultPlan {
    let chance = When::Probability;
    FaultPlan {
        faults: vec![
            Fault::write(Code::Aborted, "", chance(0.1)),
            Fault::write(Code::ResourceExhausted, "", chance(0.1)),
            Fault::write(Code::Unavailable, "/users/", chance(0.2)),
            Fault::new(Rpc::BatchWrite, chance(0.1), status(Code::Unavailable)),
            Fault::new(Rpc::BatchWrite, chance(0.05), status(Code::ResourceExhausted)),
            Fault::new(Rpc::BatchWrite, chance(0.03), Effect::ResetAfter { documents: 0 }),
        ],
        seed,
        max_request_writes: Some(60),
        max_request_bytes: Some(30_000),
        ..FaultPlan::default()
    }
}

#[test]
fn every_document_arrives_as_recorded_however_often_it_is_refused() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    for (number, mode) in ["overwrite", "create-only"].into_iter().enumerate() {
        let project = format!("demo-x{number}");
        shop.sandbox.faults().set(trouble(number as u64));
        let restored = shop.firebank(["restore", &id, "--to-project", &project, "--mode", mode, "--json"]);
        let report = restored.json();
        assert_eq!(restored.code, 0, "{restored}");
        assert!(report["retries"].as_u64().unwrap() > 20, "{report}");
        assert_eq!(
            (&report["written"], &report["failed"]),
            (&original.len().into(), &0.into())
        );
        assert_eq!(shop.contents(&project), original);
    }
}

#[test]
fn what_is_refused_for_good_is_kept_and_tried_again() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    let refused = |part: &str| original.keys().filter(|path| path.starts_with(part)).count();
    let plan = |faults: &[(Code, &str)]| FaultPlan {
        faults: faults
            .iter()
            .map(|(code, part)| Fault::write(*code, *part, When::Always))
            .collect(),
        ..FaultPlan::default()
    };
    shop.sandbox.faults().set(plan(&[
        (Code::InvalidArgument, "/documents/users/"),
        (Code::PermissionDenied, "/documents/products/"),
    ]));
    let to = ["--to-project", "demo-x"];
    let restored = shop.firebank([
        "restore",
        &id,
        to[0],
        to[1],
        "--json",
        "--dead-letter-file",
        "dead.ndjson",
    ]);
    assert_eq!(restored.code, 3, "{restored}");
    let report = restored.json();
    assert_eq!(report["failed"], refused("users/") + refused("products/"));
    let mut rest = original.clone();
    rest.retain(|path, _| !path.starts_with("users/") && !path.starts_with("products/"));
    assert_eq!(shop.contents("demo-x"), rest, "the rest arrives");
    let mut letters = 0;
    for letter in DeadLetters::open(shop.file("dead.ndjson")).unwrap() {
        let letter = letter.unwrap();
        let expected = match letter.path.root_collection() {
            "users" => Code::InvalidArgument,
            _ => Code::PermissionDenied,
        };
        assert_eq!((letter.code, letter.precondition), (expected, Precondition::None));
        assert_ne!(letter.reason, "");
        let body = original[letter.path.as_str()].clone();
        assert_eq!(letter.change, OwnedChange::Put { body });
        letters += 1;
    }
    assert_eq!(letters, refused("users/") + refused("products/"));

    // Half of the trouble is gone: what fails again goes into another file.
    shop.sandbox
        .faults()
        .set(plan(&[(Code::PermissionDenied, "/documents/products/")]));
    let retry = |more: &[&str]| {
        let all = [&["restore", "--retry", "dead.ndjson", to[0], to[1]], more].concat();
        shop.firebank(all)
    };
    retry(&["--dead-letter-file", "dead.ndjson"]).fails(1, &["--dead-letter-file"]);
    let again = retry(&["--dead-letter-file", "again.ndjson", "--json"]);
    assert_eq!(again.code, 3, "{again}");
    let report = again.json();
    assert_eq!(report["written"], refused("users/"));
    assert_eq!(report["failed"], refused("products/"));
    shop.sandbox.faults().clear();
    let done = shop.firebank(["restore", "--retry", "again.ndjson", to[0], to[1], "--json"]);
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(shop.contents("demo-x"), original);

    // A file that is none changes nothing.
    let text = std::fs::read_to_string(shop.file("again.ndjson")).unwrap();
    shop.desk.write("cut.ndjson", &text[..text.len() - 20]);
    let cut = shop.firebank(["restore", "--retry", "cut.ndjson", "--to-project", "demo-y"]);
    cut.fails(1, &["cut.ndjson, line", "Nothing was written"]);
    assert!(shop.contents("demo-y").is_empty());
    shop.firebank(["restore", "--retry", "cut.ndjson", &id])
        .fails(2, &[]);
    shop.firebank(["restore"]).fails(2, &[]);
}

/// Deletions and patches come back from the file as they went there.
#[test]
fn every_kind_of_write_is_tried_again() {
    let shop = Shop::open();
    let original = shop.contents(SHOP);
    let letters = [
        r#"{"path": "users/u000001", "operation": "delete", "status": "ABORTED", "reason": "", "document": null}"#,
        r#"{"path": "users/u000002", "operation": "patch", "status": "ABORTED", "reason": "", "mask": ["new.part"], "document": {"new": {"part": 1}}}"#,
        r#"{"path": "users/u000003", "operation": "put", "status": "ABORTED", "reason": "", "precondition": {"exists": false}, "document": {}}"#,
        r#"{"path": "users/new", "operation": "put", "status": "ABORTED", "reason": "", "precondition": {"exists": false}, "document": {"n": 1}}"#,
    ];
    shop.desk.write("dead.ndjson", letters.join("\n"));
    let retried = shop.firebank(["restore", "--retry", "dead.ndjson", "--json"]);
    assert_eq!(retried.code, 3, "{retried}");
    let report = retried.json();
    assert_eq!((&report["written"], &report["failed"]), (&3.into(), &1.into()));
    let file = report["dead_letter_file"].as_str().unwrap();
    let failed: Vec<_> = DeadLetters::open(shop.file(file))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (failed[0].path.as_str(), failed[0].code, failed[0].precondition),
        ("users/u000003", Code::AlreadyExists, Precondition::MustNotExist)
    );
    let now = shop.contents(SHOP);
    assert!(!now.contains_key("users/u000001") && now.contains_key("users/new"));
    assert_eq!(now["users/u000003"], original["users/u000003"]);
    assert_ne!(now["users/u000002"], original["users/u000002"]);
    assert!(now["users/u000002"].len() > original["users/u000002"].len());
}
