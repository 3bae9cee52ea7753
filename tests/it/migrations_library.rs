//! Migrations through the library, on the sandbox and on Google's emulator alike.

use std::time::Duration;

use firebank::document::{DocumentPath, Value, canonical};
use firebank::firestore::{BulkWriter, WriteFailure, WriteOptions};
use firebank::migration::{MigrateOptions, MigrationError, RecordStatus, Version};
use firebank::progress::Progress;

use crate::migrations_support::{ADD_STATE, Bench, FAILS_LATE, fields, item};
use crate::support::{emulator, sandbox};

async fn there_and_back(address: &str) {
    let bench = Bench::new(address, "there", 1200).await;
    let before = bench.documents().await;
    bench.script(
        "v1_much",
        r#"
        export function migrate(db) {
          db.transform("items", (item) => ({ ...item, name: item.name + "!", half: item.half * 2 }));
          db.addField("items", "state", { deep: [1, 2.5, null] });
          for (let i = 0; i < 200; i += 1) db.delete(`items/i${String(i).padStart(5, "0")}`);
          for (let i = 0; i < 300; i += 1) db.create(`extra/e${i}`, { i, at: FieldValue.serverTimestamp() });
          db.update("items/i00300", { number: FieldValue.increment(1), bytes: FieldValue.delete() });
          db.renameField("items", "big", "huge");
        }
        export function validate(db) { db.assertEqual(db.count("items"), 1000); }"#,
    );
    assert_eq!(bench.migrate().await.unwrap(), ["v1_much"]);
    let after = bench.documents().await;
    assert_eq!(after.len(), 1300);
    bench.script("v2_fails", FAILS_LATE);
    let failed = bench.migrate().await.unwrap_err();
    assert!(matches!(failed, MigrationError::Failed { .. }), "{failed}");
    assert!(bench.documents().await == after, "{failed}");
    bench.roll_back_all().await;
    assert!(bench.documents().await == before);
    assert_eq!(bench.status("v1_much").await, RecordStatus::RolledBack);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_on_the_sandbox() {
    there_and_back(&sandbox().await.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_on_the_emulator() {
    let Some(address) = emulator() else { return };
    there_and_back(address).await;
}

/// Stopped at any point by dropping the runner, which leaves lock, record and journal as a kill does.
async fn dropped_anywhere(address: &str) {
    let bench = Bench::new(address, "dropped", 900).await;
    let before = bench.documents().await;
    bench.script(
        "v1_much",
        r#"
        export function migrate(db) {
          db.transform("items", (item) => ({ ...item, name: item.name + "!" }));
          for (let i = 0; i < 100; i += 1) db.create(`extra/e${i}`, { i });
          db.addField("items", "state", "new");
          for (let i = 0; i < 100; i += 1) db.delete(`items/i${String(i).padStart(5, "0")}`);
        }"#,
    );
    let start = std::time::Instant::now();
    bench.migrate().await.unwrap();
    let duration = start.elapsed();
    let after = bench.documents().await;
    bench.roll_back_all().await;
    for part in [0.2, 0.45, 0.6, 0.75, 0.9] {
        let _ = tokio::time::timeout(duration.mul_f64(part), bench.migrate()).await;
        // What was on its way arrives.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let options = MigrateOptions {
            to: Some(Version(0)),
            ..MigrateOptions::default()
        };
        bench.runner().migrate(options, &Progress::new()).await.unwrap();
        match bench.status("v1_much").await {
            RecordStatus::Completed => assert!(bench.documents().await == after),
            _ => assert!(bench.documents().await == before, "dropped after {part} of it"),
        }
        bench.migrate().await.unwrap();
        assert!(bench.documents().await == after);
        bench.roll_back_all().await;
    }
    assert!(bench.documents().await == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_anywhere_on_the_sandbox() {
    dropped_anywhere(&sandbox().await.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_anywhere_on_the_emulator() {
    let Some(address) = emulator() else { return };
    dropped_anywhere(address).await;
}

async fn two_at_once(address: &str) {
    let bench = Bench::new(address, "two", 20).await;
    for number in 1..=3 {
        bench.script(
            &format!("v{number}_count"),
            "export function migrate(db) {
               db.set('counts/all', { count: (db.get('counts/all')?.data.count ?? 0) + 1 });
               db.transform('items', (item) => ({ ...item, number: item.number + 1 }));
             }",
        );
    }
    let (first, second) = tokio::join!(bench.migrate(), bench.migrate());
    let mut applied = [first.unwrap(), second.unwrap()].concat();
    applied.sort();
    assert_eq!(applied, ["v1_count", "v2_count", "v3_count"]);
    let count = canonical::decode(&bench.documents().await["counts/all"]).unwrap();
    assert_eq!(count["count"], Value::Integer(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_on_the_sandbox() {
    two_at_once(&sandbox().await.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_on_the_emulator() {
    let Some(address) = emulator() else { return };
    two_at_once(address).await;
}

/// More before-images than are sorted in memory, and many that are written twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_journal_is_sorted_in_parts() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "large", 0).await;
    let database = &bench.database;
    let mut writer = BulkWriter::new(database, WriteOptions::new(database), Vec::<WriteFailure>::new());
    for number in 0..1500i64 {
        let mut fields = fields(number);
        fields.insert("filler".to_owned(), Value::Bytes(vec![number as u8; 60_000]));
        writer
            .put(&item(number), &canonical::encode(&fields))
            .await
            .unwrap();
    }
    writer.finish().await.unwrap();
    let before = bench.documents().await;
    bench.script("v1_state", ADD_STATE);
    bench.script("v2_twice", "export function migrate(db) { db.addField('items', 'a', 1); db.removeField('items', 'name'); throw new Error('x'); }");
    assert!(bench.migrate().await.is_err());
    assert_eq!(bench.status("v1_state").await, RecordStatus::Completed);
    bench.roll_back_all().await;
    assert!(bench.documents().await == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_write_during_a_migration_that_fails_is_left_and_told() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "other", 50).await;
    let before = bench.documents().await;
    bench.script(
        "v1_slow",
        "export function migrate(db) {
           db.addField('items', 'state', 'new');
           // Which sends what was asked for.
           db.count('items');
           while (db.get('signal/go') === null) {}
           throw new Error('too late');
         }",
    );
    let database = bench.database.clone();
    let theirs = canonical::encode(&fields(4711));
    let other = {
        let theirs = theirs.clone();
        async move {
            let state = DocumentPath::parse("items/i00007").unwrap();
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let found = database
                    .get_documents(std::slice::from_ref(&state), None)
                    .await
                    .unwrap();
                let fields = canonical::decode(found.found.get(0).unwrap().body).unwrap();
                if fields.contains_key("state") {
                    break;
                }
            }
            let mut writer = BulkWriter::new(
                &database,
                WriteOptions::new(&database),
                Vec::<WriteFailure>::new(),
            );
            writer.put(&state, &theirs).await.unwrap();
            writer.finish().await.unwrap();
            let mut writer = BulkWriter::new(
                &database,
                WriteOptions::new(&database),
                Vec::<WriteFailure>::new(),
            );
            let signal = DocumentPath::parse("signal/go").unwrap();
            writer
                .put(&signal, &canonical::encode(&fields_of_nothing()))
                .await
                .unwrap();
            writer.finish().await.unwrap();
        }
    };
    let (failed, ()) = tokio::join!(bench.migrate(), other);
    let message = failed.unwrap_err().to_string();
    assert!(
        message.contains("items/i00007") && message.contains("firebank show"),
        "{message}"
    );
    let mut expected = before.clone();
    expected.insert("items/i00007".to_owned(), theirs);
    expected.insert("signal/go".to_owned(), canonical::encode(&fields_of_nothing()));
    assert!(bench.documents().await == expected);
}

fn fields_of_nothing() -> firebank::document::Fields {
    firebank::document::Fields::new()
}
