//! What the tests of migrations have in common: a shop, a folder with scripts, and a repository.

use firebank::document::{DocumentPath, Fields, Value, canonical};
use serde_json::Value as Json;

use crate::cli_support::*;

/// A shop with so many small documents `items/i0000`, a repository and an empty folder of scripts.
pub(crate) struct Project {
    pub(crate) shop: Shop,
}

impl std::ops::Deref for Project {
    type Target = Shop;

    fn deref(&self) -> &Shop {
        &self.shop
    }
}

pub(crate) fn fields(number: i64) -> Fields {
    let values = [
        ("number", Value::Integer(number)),
        ("half", Value::Double(number as f64 / 2.0)),
        ("whole", Value::Double(number as f64)),
        ("big", Value::Integer(i64::MAX - number)),
        ("name", Value::String(format!("Item {number}"))),
        ("bytes", Value::Bytes(vec![number as u8; 5])),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

pub(crate) fn item(number: i64) -> DocumentPath {
    DocumentPath::parse(format!("items/i{number:05}")).unwrap()
}

impl Project {
    pub(crate) fn with_items(items: i64) -> Self {
        let shop = Shop::empty();
        let documents = (0..items).map(|number| (item(number), canonical::encode(&fields(number))));
        shop.put(SHOP, documents.collect());
        shop.run(["init"]).done();
        std::fs::create_dir(shop.file("migrations")).unwrap();
        Self { shop }
    }

    /// Writes `migrations/<id>.js`.
    pub(crate) fn script(&self, id: &str, text: &str) {
        self.write(&format!("migrations/{id}.js"), text);
    }

    /// The database without what Firebank keeps in it for itself.
    pub(crate) fn documents(&self) -> Contents {
        let mut contents = self.contents(SHOP);
        contents.retain(|path, _| !path.starts_with("_migrations"));
        contents
    }

    /// The document `_migrations/<id>`.
    #[track_caller]
    pub(crate) fn record(&self, id: &str) -> Fields {
        let contents = self.contents(SHOP);
        canonical::decode(&contents[&format!("_migrations/{id}")]).unwrap()
    }

    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> String {
        match &self.record(id)["status"] {
            Value::String(status) => status.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn migrate(&self) -> Json {
        self.firebank(["migrate", "--json"]).json()
    }

    /// The ids of what `migrate` applied.
    #[track_caller]
    pub(crate) fn applied(&self) -> Vec<String> {
        ids(&self.migrate()["applied"])
    }
}

pub(crate) fn ids(list: &Json) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// Adds a field to every item.
pub(crate) const ADD_STATE: &str = r#"
export const description = "Every item has a state";
export function migrate(db) { db.addField("items", "state", "new"); }
"#;

/// Changes, creates and deletes, some documents more than once, and then throws.
pub(crate) const FAILS_LATE: &str = r#"
export function migrate(db) {
  db.transform("items", (item) => ({ ...item, name: item.name.toUpperCase(), whole: item.whole + 1 }));
  db.addField("items", "state", "new");
  db.removeField("items", "bytes");
  for (let i = 0; i < 50; i += 1) db.create(`extra/e${i}`, { i });
  db.delete("items/i00003");
  db.update("items/i00004", { number: FieldValue.increment(5) });
  if (db.count("extra") !== 50) throw new Error("not written");
  throw new Error("on purpose, at the end");
}
"#;
