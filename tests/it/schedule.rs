//! What `firebank schedule` prints, read by those who will read it: a cron parser and a shell, systemd, the schemas of Kubernetes,
//! and a `gcloud` that writes down what it is asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use croner::Cron;

use crate::cli_support::{Desk, SHOP, Shop};
use crate::support::tools;

const BUCKET: [&str; 4] = ["--repository", "gs://my-backups/shop", "--project", "shop-prod"];
const VALIDATOR: &str = "firebank/kubernetes-validate-1.37.0/bin/kubernetes-validate";

fn schedule(desk: &Desk, arguments: &[&str]) -> String {
    let given = [&["schedule"], arguments, &BUCKET].concat();
    desk.run(given).done()
}

/// The five fields and the command of every line that starts something.
fn cron_lines(crontab: &str) -> Vec<(String, String)> {
    let is_job = |line: &&str| line.starts_with(|first: char| first.is_ascii_digit());
    let jobs = crontab.lines().filter(is_job).map(|line| {
        let fields: Vec<&str> = line.splitn(6, ' ').collect();
        (fields[..5].join(" "), fields[5].to_owned())
    });
    jobs.collect()
}

#[test]
fn a_crontab_says_when() {
    let desk = Desk::new();
    let times = |crontab: &str| -> Vec<String> {
        let jobs = cron_lines(crontab);
        let from = "2026-11-20T00:00:00Z"
            .parse::<chrono::DateTime<chrono::Utc>>()
            .unwrap();
        let next = |fields: &str| {
            Cron::from_str(fields)
                .unwrap()
                .find_next_occurrence(&from, false)
                .unwrap()
        };
        jobs.iter()
            .map(|(fields, _)| next(fields).format("%a %F %T").to_string())
            .collect()
    };
    let usual = schedule(&desk, &["cron"]);
    assert_eq!(
        times(&usual),
        [
            "Fri 2026-11-20 02:00:00",
            "Sat 2026-11-21 04:00:00",
            "Sun 2026-11-22 03:00:00",
            "Fri 2026-11-20 08:00:00"
        ]
    );
    let own = [
        "cron",
        "--backup-at",
        "mon 23:30",
        "--clean-at",
        "1:05",
        "--time-zone",
        "Europe/Berlin",
    ];
    let own = schedule(&desk, &own);
    assert_eq!(times(&own)[0], "Mon 2026-11-23 23:30:00");
    assert_eq!(times(&own)[2], "Fri 2026-11-20 01:05:00");
    assert!(own.contains("\nCRON_TZ=Europe/Berlin\n") && !usual.contains("CRON_TZ"));
}

/// As cron does: a percent sign that is not escaped would end the command.
fn as_cron_passes_it(command: &str) -> String {
    assert!(!command.replace("\\%", "").contains('%'), "{command}");
    command.replace("\\%", "%")
}

#[test]
fn the_lines_of_a_crontab_do_what_they_say() {
    let shop = Shop::open();
    let quoted = shop.desk.file("back 'ups");
    let repository = quoted.to_str().unwrap();
    let ended = shop.desk.run(["init", "--repository", repository]);
    ended.done();
    let crontab = shop.desk.run([
        "schedule",
        "cron",
        "--repository",
        repository,
        "--project",
        SHOP,
        "--program",
        env!("CARGO_BIN_EXE_firebank"),
        "--backup-arguments",
        "--description 'every night, 100 %'",
        "--clean-arguments",
        "--keep-daily 14",
    ]);
    let crontab = crontab.done();
    let environment = crontab.lines().filter_map(|line| line.split_once('='));
    let environment: Vec<(&str, &str)> = environment
        .filter(|(name, _)| {
            name.chars()
                .all(|letter| letter.is_ascii_uppercase() || letter == '_')
        })
        .map(|(name, value)| {
            (
                name,
                value
                    .strip_prefix('"')
                    .and_then(|value| value.strip_suffix('"'))
                    .unwrap_or(value),
            )
        })
        .collect();
    assert_eq!(environment.len(), 2, "{crontab}");
    let run = |command: &str| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &as_cron_passes_it(command)])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("FIRESTORE_EMULATOR_HOST", shop.address())
            .envs(environment.iter().copied())
            .current_dir(shop.desk.path());
        let ended = shell.output().unwrap();
        (
            ended.status.code(),
            String::from_utf8(ended.stdout).unwrap(),
            String::from_utf8(ended.stderr).unwrap(),
        )
    };
    let jobs = cron_lines(&crontab);
    // Before the first backup, the last job is the alert, and says so where cron finds it.
    let (code, _, says) = run(&jobs[3].1);
    assert_eq!(code, Some(3), "{says}");
    assert!(!says.is_empty());
    for (_, command) in &jobs {
        let (code, stdout, stderr) = run(command);
        assert_eq!((code, stdout.as_str()), (Some(0), ""), "{command}\n{stderr}");
    }
    let listed = shop
        .desk
        .run(["list-backups", "--json", "--repository", repository])
        .json();
    assert_eq!(
        listed["snapshots"][0]["description"], "every night, 100 %",
        "{listed}"
    );
}

#[test]
fn units_pass_systemds_own_check() {
    let Some(analyze) = tools::find("systemd-analyze", "FIREBANK_SYSTEMD_ANALYZE", "systemd-analyze") else {
        return tools::skip("of systemd units", "systemd-analyze was not found");
    };
    let desk = Desk::new();
    let program = env!("CARGO_BIN_EXE_firebank");
    let folder = desk.file("back ups");
    let given = [
        "schedule",
        "systemd",
        "--repository",
        folder.to_str().unwrap(),
        "--project",
        "shop-prod",
        "--program",
        program,
        "--output",
        "units",
        "--user",
        "root",
        "--time-zone",
        "America/New_York",
        "--clean-arguments",
        "--keep-tag 'a $b %n \"c\"'",
    ];
    desk.run(given).done();
    let units: Vec<PathBuf> = desk.files().iter().map(|name| desk.file(name)).collect();
    assert_eq!(units.len(), 8);
    let verify = |units: &[PathBuf]| {
        let ended = Command::new(&analyze)
            .args(["verify", "--man=no"])
            .args(units)
            .output()
            .unwrap();
        (
            ended.status.success(),
            String::from_utf8_lossy(&ended.stderr).into_owned(),
        )
    };
    let (passes, says) = verify(&units);
    assert!(passes && says.is_empty(), "{says}");
    let timers = units
        .iter()
        .filter(|unit| unit.extension().is_some_and(|kind| kind == "timer"));
    let mut calendars = Vec::new();
    for timer in timers {
        let text = std::fs::read_to_string(timer).unwrap();
        let calendar = text
            .lines()
            .find_map(|line| line.strip_prefix("OnCalendar="))
            .unwrap();
        let ended = Command::new(&analyze)
            .args(["calendar", calendar])
            .output()
            .unwrap();
        assert!(ended.status.success(), "{calendar}");
        calendars.push(calendar.to_owned());
    }
    calendars.sort();
    let usual = [
        "*-*-* 02:00:00",
        "*-*-* 08:00:00",
        "Sat *-*-* 04:00:00",
        "Sun *-*-* 03:00:00",
    ];
    let usual = usual.map(|time| format!("{time} America/New_York"));
    assert_eq!(calendars, usual);
    // The check is one: it finds what is wrong.
    let wrong = desk.file("units/firebank-clean.timer");
    let text = std::fs::read_to_string(&wrong)
        .unwrap()
        .replace("Sun *-*-*", "Someday *-*-*");
    std::fs::write(&wrong, text).unwrap();
    let (_, says) = verify(&[wrong]);
    assert!(says.contains("Someday"), "{says}");
    // A value that has to be quoted is what the command gets.
    let service = std::fs::read_to_string(desk.file("units/firebank-clean.service")).unwrap();
    assert!(
        service.contains(r#"ExecStart="#) && service.contains(r#" --keep-tag "a $$b %%n \"c\"""#),
        "{service}"
    );
    desk.run(given)
        .fails(1, &["firebank-backup.service", "remove it first"]);
}

#[test]
fn manifests_pass_the_schemas_of_kubernetes() {
    let desk = Desk::new();
    let mut own = vec![
        "kubernetes",
        "--image",
        "registry.example/firebank:1",
        "--output",
        "out",
        "--tasks",
        "8",
    ];
    own.extend([
        "--time-zone",
        "Asia/Tokyo",
        "--backup-arguments",
        "--tag 'a: \"b\" $(HOME) #c'",
    ]);
    schedule(&desk, &own);
    let file = desk.file("out/firebank.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    for expected in [
        "completionMode: Indexed",
        "completions: 8",
        "parallelism: 8",
        "timeZone: \"Asia/Tokyo\"",
        r#"- "a: \"b\" $$(HOME) #c""#,
        "- \"--session\"\n                - \"$(JOB_NAME)\"\n                - \"--task-count\"\n                - \"8\"\n",
        "fieldPath: \"metadata.labels['batch.kubernetes.io/job-name']\"",
        "- name: FIREBANK_EXECUTION",
        "serviceAccountName: firebank-clean",
        "schedule: \"0 2 * * *\"",
        "schedule: \"0 3 * * 0\"",
        "- \"--read-data=10%\"",
        "- \"--max-age\"\n                - \"26h\"\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let Some(validator) = tools::find("kubernetes-validate", "FIREBANK_KUBERNETES_VALIDATE", VALIDATOR)
    else {
        return tools::skip(
            "of Kubernetes manifests",
            "kubernetes-validate was not found (pip install kubernetes-validate)",
        );
    };
    let validate = |file: &Path| {
        let ended = Command::new(&validator)
            .arg("--strict")
            .arg(file)
            .output()
            .unwrap();
        let says = [ended.stdout, ended.stderr].concat();
        (
            ended.status.success(),
            String::from_utf8_lossy(&says).into_owned(),
        )
    };
    let (passes, says) = validate(&file);
    assert!(passes && says.matches("passed").count() == 8, "{says}");
    std::fs::write(&file, text.replace("concurrencyPolicy", "concurrencyPolizei")).unwrap();
    let (passes, says) = validate(&file);
    assert!(!passes && says.contains("concurrencyPolizei"), "{says}");
}

/// A `gcloud` that knows nothing at first, and of all that it is asked writes a line.
const GCLOUD: &str = r#"#!/usr/bin/env bash
printf '%s\n' "$*" >>"$LOG"
case "$*" in *" describe "*) [ -e "$LOG.known" ] ;; esac
"#;

#[test]
fn the_script_for_cloud_run_can_be_run_twice() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    let script = schedule(
        &desk,
        &[
            "cloud-run",
            "--image",
            "docker.example/x:1",
            "--region",
            "europe-west1",
            "--tasks",
            "5",
            "--backup-arguments",
            "users --tag 'a,b'",
        ],
    );
    let script = desk.write("script.sh", script);
    let gcloud = desk.write("gcloud", GCLOUD);
    std::fs::set_permissions(&gcloud, std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = desk.file("log");
    let path = std::env::join_paths([desk.path(), "/usr/bin".into(), "/bin".into()]).unwrap();
    let run = || -> Vec<String> {
        let _ = std::fs::remove_file(&log);
        let ended = Command::new("bash")
            .arg(&script)
            .env("PATH", &path)
            .env("LOG", &log)
            .output()
            .unwrap();
        assert!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
        std::fs::read_to_string(&log)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    };
    let first = run();
    let deployed: Vec<&String> = first
        .iter()
        .filter(|line| line.starts_with("run jobs deploy "))
        .collect();
    assert_eq!(deployed.len(), 4);
    assert!(deployed[0].contains(" --tasks=5 ") && deployed[1].contains(" --tasks=1 "));
    assert!(
        deployed[0].ends_with("--args=^|^backup|users|--tag|a,b"),
        "{}",
        deployed[0]
    );
    assert!(
        deployed[0].contains(
            "--set-env-vars=FIREBANK_REPOSITORY=gs://my-backups/shop,FIREBASE_PROJECT_ID=shop-prod"
        )
    );
    let count = |lines: &[String], word: &str| lines.iter().filter(|line| line.contains(word)).count();
    assert_eq!(count(&first, "iam service-accounts create"), 5);
    assert_eq!(count(&first, "scheduler jobs create http"), 4);
    for (job, time) in [("firebank-backup", "0 2 * * *"), ("firebank-clean", "0 3 * * 0")] {
        let starts = format!("scheduler jobs create http {job} ");
        let starts = first.iter().find(|line| line.starts_with(&starts)).unwrap();
        assert!(starts.contains(&format!(" --schedule={time} ")), "{starts}");
    }
    // Only the clean may delete, and only who reads the database may read it.
    let granted = |role: &str| -> BTreeSet<String> {
        let lines = first.iter().filter(|line| line.contains(role));
        let member = |line: &String| {
            line.split("serviceAccount:")
                .nth(1)?
                .split('@')
                .next()
                .map(str::to_owned)
        };
        lines.filter_map(member).collect()
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(granted("storage.objectUser"), names(&["firebank-clean"]));
    assert_eq!(
        granted("datastore."),
        names(&["firebank-backup", "firebank-check"])
    );
    assert_eq!(granted("run.invoker"), names(&["firebank-start"]));

    std::fs::write(desk.file("log.known"), "").unwrap();
    let second = run();
    assert_eq!(count(&second, " create"), 0);
    assert_eq!(count(&second, "scheduler jobs update http"), 4);
}

#[test]
fn the_tasks_of_an_execution_share_a_session() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let back_up = |execution: &str| {
        let address = shop.address();
        let environment = [
            ("CLOUD_RUN_EXECUTION", execution),
            ("FIRESTORE_EMULATOR_HOST", address.as_str()),
            ("FIREBASE_PROJECT_ID", SHOP),
        ];
        shop.run_with(&environment, ["backup"])
    };
    let snapshots = || {
        shop.run(["list-backups", "--json"]).json()["snapshots"]
            .as_array()
            .unwrap()
            .len()
    };
    back_up("firebank-backup-x1").done();
    assert_eq!(snapshots(), 1);
    // A task that is started again after the end takes no second backup.
    back_up("firebank-backup-x1");
    assert_eq!(snapshots(), 1);
    back_up("firebank-backup-x2").done();
    assert_eq!(snapshots(), 2);
}

#[test]
fn what_nothing_could_run_is_refused() {
    let desk = Desk::new();
    let fails =
        |arguments: &[&str], says: &[&str]| desk.run([&["schedule"], arguments].concat()).fails(2, says);
    let bucket = |arguments: &[&'static str]| [arguments, &BUCKET].concat();
    fails(&bucket(&["cron", "--backup-at", "25:00"]), &["sun 03:00"]);
    fails(
        &bucket(&["cron", "--max-age", "soon"]),
        &["status --max-age soon", "26h"],
    );
    fails(&bucket(&["cron", "--verify-part", "many"]), &["--read-data=many"]);
    fails(
        &bucket(&["cron", "--clean-arguments", "--keep-dayly 3"]),
        &["clean --yes --keep-dayly 3", "--keep-dayly"],
    );
    fails(&bucket(&["cron", "--clean-arguments", "'open"]), &["'open"]);
    fails(
        &bucket(&["cron", "--backup-arguments", "--description 'a\nb'"]),
        &["control character"],
    );
    fails(&bucket(&["cron", "--time-zone", "Mars/Base"]), &["Mars/Base"]);
    fails(&["cron", "--repository", "gs://my-backups/shop"], &["--project"]);
    let folder = [
        "kubernetes",
        "--image",
        "x",
        "--repository",
        "backups",
        "--project",
        "shop-prod",
    ];
    fails(&folder, &["backups", "give a bucket"]);
    fails(&bucket(&["kubernetes"]), &["--image"]);
    assert!(desk.files().is_empty());
}
