//! Repositories in buckets: the conformance of the three services, and the whole story by the binary on each.

use std::collections::BTreeMap;

use firebank::store::conformance;

use crate::cli_support::{SHOP, Shop};
use crate::support::buckets::{AZURE_SECRET, Kind, SECRET, Server};

async fn bucket_conforms(kind: Kind) {
    let Some(server) = Server::start(kind).await else {
        return;
    };
    // Below a prefix too, beside what is there already, and with the checksums that Amazon gets.
    let plain = server.options();
    let mut checked = server.options();
    let checksum = ("AWS_CHECKSUM_ALGORITHM".to_owned(), "sha256".to_owned());
    checked.variables.extend([checksum]);
    for (prefix, options) in [("", plain), ("deep/er", checked)] {
        if let Err(violation) = conformance::check(&server.store_with(prefix, &options)).await {
            panic!("{kind:?}: {violation}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    bucket_conforms(Kind::S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_cloud_storage_conforms() {
    bucket_conforms(Kind::Gcs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_conforms() {
    bucket_conforms(Kind::Azure).await;
}

fn story(kind: Kind) {
    let shop = Shop::open();
    let Some(server) = shop.runtime.block_on(Server::start(kind)) else {
        return;
    };
    let address = server.address("night/ly");
    let mut variables: BTreeMap<String, String> = server.variables();
    variables.insert("FIREBANK_REPOSITORY".to_owned(), address.clone());
    variables.insert("FIRESTORE_EMULATOR_HOST".to_owned(), shop.address());
    variables.insert("FIREBASE_PROJECT_ID".to_owned(), SHOP.to_owned());
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let firebank = |arguments: &[&str]| {
        let ended = shop.run_with(&variables, arguments);
        for secret in [SECRET, AZURE_SECRET] {
            assert!(!ended.to_string().contains(secret), "a secret is shown: {ended}");
        }
        ended
    };

    // Before there is a repository.
    firebank(&["backup"]).fails(1, &[&address, "firebank init"]);
    let doctor = firebank(&["doctor", "--json"]);
    assert!(doctor.stdout.contains("firebank init"), "{doctor}");

    assert!(firebank(&["init"]).done().contains(&address));
    firebank(&["init"]).fails(1, &[&address]);
    let snapshot = firebank(&["backup", "--json"]).json();
    let id = snapshot["snapshot"].as_str().unwrap();
    let listing = firebank(&["list-backups", "--json"]).json();
    assert_eq!(listing["snapshots"][0]["id"], id);
    assert_eq!(listing["json_backups"].as_array().unwrap().len(), 0);
    assert!(firebank(&["show", "latest"]).done().contains(id));
    assert!(firebank(&["-vvv", "show", "latest"]).done().contains(id));
    assert!(
        firebank(&["ls", "latest", "products"])
            .done()
            .contains("products/")
    );
    let doctor = firebank(&["doctor", "--json"]).json();
    let checks = doctor["checks"].as_array().unwrap();
    assert!(
        checks
            .iter()
            .any(|check| check["name"] == "repository writes" && check["state"] == "ok"),
        "{doctor}"
    );
    assert_eq!(firebank(&["status", "--json"]).json()["snapshots"], 1);
    firebank(&["verify", "--read-data"]).done();
    firebank(&["restore", "latest", "--to-project", "demo-copy"]).done();
    assert_eq!(shop.contents("demo-copy"), shop.contents(SHOP));
    // An unchanged second night, and files from a snapshot in the bucket.
    firebank(&["backup"]).done();
    firebank(&["verify", "--read-data"]).done();
    firebank(&["export", "latest", "-o", "json"]).done();
    assert!(
        shop.files()
            .iter()
            .any(|file| file.starts_with("json/backup_products"))
    );
    // JSON backups are files.
    firebank(&["backup", "--format", "json"]).fails(2, &[&address, "-o DIR"]);
    firebank(&["restore", "backup_x.json", "--to-project", "demo-x"]).fails(1, &["backup_x.json"]);
    // Nothing came to lie beside the bucket.
    assert!(
        shop.files().iter().all(|file| file.starts_with("json/")),
        "{:?}",
        shop.files()
    );
}

#[test]
fn the_whole_story_in_s3() {
    story(Kind::S3);
}

#[test]
fn the_whole_story_in_google_cloud_storage() {
    story(Kind::Gcs);
}

#[test]
fn the_whole_story_in_azure() {
    story(Kind::Azure);
}
