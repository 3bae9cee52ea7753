//! A believable retail database: the standard collections, subcollections, missing documents, every value type.
//!
//! Generated from a seed, document by document, so that it can be as large as a test likes without being held.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

use crate::document::{DocumentPath, Fields, GeoPoint, Reference, Timestamp, Value};

/// How many documents to make of each root collection; subcollections come on top.
#[derive(Clone, Copy, Debug)]
pub struct RetailSize {
    /// Products, each with up to three reviews below it.
    pub products: usize,
    /// Users, each with one or two addresses below it.
    pub users: usize,
    /// Orders, each with its lines and sometimes a shipment below it.
    pub orders: usize,
    /// Feedback.
    pub feedback: usize,
    /// Days of analytics; the days themselves are missing documents with a collection below each.
    pub analytics_days: usize,
}

impl RetailSize {
    /// What `firebank demo` loads: some twenty thousand documents.
    pub const DEMO: Self = Self {
        products: 2_000,
        users: 1_500,
        orders: 3_000,
        feedback: 1_000,
        analytics_days: 60,
    };

    /// A few hundred documents, for tests.
    pub const SMALL: Self = Self {
        products: 40,
        users: 30,
        orders: 40,
        feedback: 20,
        analytics_days: 3,
    };
}

/// 2025-06-29T12:00:00Z: all times of the data set lie before it.
const NOON: i64 = 1_751_198_400;
const DAY: i64 = 86_400;

const CATEGORIES: [(&str, &str); 8] = [
    ("books", "Books & stationery"),
    ("electronics", "Electronics"),
    ("garden", "Garden & DIY"),
    ("grocery", "Grocery"),
    ("home", "Home & kitchen"),
    ("sports", "Sports & outdoors"),
    ("toys", "Toys & games"),
    ("wear", "Clothing & shoes"),
];
const ADJECTIVES: [&str; 12] = [
    "Compact",
    "Classic",
    "Foldable",
    "Organic",
    "Wireless",
    "Insulated",
    "Recycled",
    "Handmade",
    "Quiet",
    "Rugged",
    "Light",
    "Crème",
];
const NOUNS: [&str; 14] = [
    "kettle",
    "backpack",
    "lamp",
    "notebook",
    "trowel",
    "headphones",
    "muesli",
    "jacket",
    "puzzle",
    "racket",
    "blanket",
    "café grinder",
    "water bottle",
    "desk organiser",
];
const FIRST_NAMES: [&str; 12] = [
    "Amara", "Bjørn", "Chloé", "Dmitri", "Elif", "Femi", "Grace", "Hiro", "Inés", "Jonas", "李雷", "Zoë",
];
const LAST_NAMES: [&str; 10] = [
    "Okafor", "Nguyễn", "García", "Schmidt", "Rossi", "Tanaka", "Novák", "O'Brien", "Silva", "Haddad",
];
const CITIES: [(&str, &str, f64, f64); 8] = [
    ("Berlin", "DE", 52.52, 13.405),
    ("Lagos", "NG", 6.5244, 3.3792),
    ("Lyon", "FR", 45.764, 4.8357),
    ("Oslo", "NO", 59.9139, 10.7522),
    ("Porto", "PT", 41.1579, -8.6291),
    ("Reykjavík", "IS", 64.1466, -21.9426),
    ("São Paulo", "BR", -23.5505, -46.6333),
    ("京都", "JP", 35.0116, 135.7681),
];
const OPINIONS: [&str; 8] = [
    "Exactly what I was looking for.",
    "Arrived a day early, well packed.",
    "The colour is not the one in the picture, but I like it.",
    "Broke after two weeks. The replacement came quickly and has held up since.",
    "Good value. Would buy again 👍",
    "My daughter loves it.",
    "Instructions are hard to follow; once it stands, it stands.",
    "Trop petit pour moi, mais de bonne qualité.",
];
const STATUSES: [&str; 5] = ["placed", "paid", "packed", "shipped", "delivered"];

/// The documents, root collection by root collection, the same ones for the same seed.
pub fn documents(size: RetailSize, seed: u64) -> impl Iterator<Item = (DocumentPath, Fields)> {
    let sections: [(usize, Section); 7] = [
        (CATEGORIES.len(), Shop::category),
        (size.products, Shop::product),
        (size.users, Shop::user),
        (size.orders, Shop::order),
        (size.feedback, Shop::feedback),
        (size.analytics_days, Shop::analytics_day),
        (size.users / 2, Shop::recommendation),
    ];
    let mut shop = Shop {
        random: StdRng::seed_from_u64(seed),
        size,
        made: Vec::new(),
    };
    sections
        .into_iter()
        .flat_map(|(count, make)| (0..count).map(move |index| (make, index)))
        .flat_map(move |(make, index)| {
            make(&mut shop, index);
            std::mem::take(&mut shop.made)
        })
}

/// Makes the nth document of a collection, and what is below it.
type Section = fn(&mut Shop, usize);

struct Shop {
    random: StdRng,
    size: RetailSize,
    made: Vec<(DocumentPath, Fields)>,
}

impl Shop {
    fn put<const N: usize>(&mut self, path: String, fields: [(&str, Value); N]) {
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        // Every path below is written as collection/id pairs.
        if let Ok(path) = DocumentPath::parse(path) {
            self.made.push((path, fields));
        }
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.choose(&mut self.random).copied().unwrap_or_default()
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end.max(1))
    }

    fn time(&mut self, days_back: i64) -> Value {
        let seconds = NOON - self.random.random_range(0..days_back * DAY);
        Value::Timestamp(Timestamp::new(
            seconds,
            self.random.random_range(0..1_000_000) * 1_000,
        ))
    }

    /// A price in minor units, as a double with cents: `19.9`, now and then a whole number.
    fn price(&mut self) -> f64 {
        f64::from(self.random.random_range(99..25_000)) / 100.0
    }

    fn vector(&mut self, dimensions: usize) -> Value {
        let components = (0..dimensions)
            .map(|_| Value::Double(f64::from(self.random.random_range(-1.0f32..1.0))))
            .collect();
        map([
            ("__type__", text("__vector__")),
            ("value", Value::Array(components)),
        ])
    }

    fn sentence(&mut self) -> String {
        let count = self.random.random_range(1..4);
        let mut sentences = Vec::with_capacity(count);
        for _ in 0..count {
            sentences.push(self.pick(&OPINIONS));
        }
        sentences.join(" ")
    }

    fn category(&mut self, index: usize) {
        let (id, title) = CATEGORIES[index];
        self.put(
            format!("categories/{id}"),
            [
                ("title", text(title)),
                ("position", Value::Integer(index as i64)),
                ("parent", Value::Null),
                ("visible", Value::Boolean(index != 7)),
                (
                    "labels",
                    map([
                        ("en", text(title)),
                        (
                            "x.y `z\\",
                            text("a map key with a dot, a back-tick and a backslash"),
                        ),
                    ]),
                ),
            ],
        );
    }

    fn product(&mut self, index: usize) {
        let id = format!("p{index:06}");
        let (category, _) = CATEGORIES[self.below(CATEGORIES.len())];
        let name = format!("{} {}", self.pick(&ADJECTIVES), self.pick(&NOUNS));
        let mut thumbnail = vec![0u8; self.random.random_range(16..64)];
        self.random.fill_bytes(&mut thumbnail);
        let (price, description, added, embedding) =
            (self.price(), self.sentence(), self.time(700), self.vector(8));
        let stock = self.random.random_range(0..400);
        self.put(
            format!("products/{id}"),
            [
                ("name", text(&name)),
                ("description", text(&description)),
                ("category", reference(format!("categories/{category}"))),
                ("price", Value::Double(price)),
                ("currency", text("EUR")),
                ("stock", Value::Integer(stock)),
                ("weight_kg", Value::Double((index % 30) as f64)),
                (
                    "tags",
                    Value::Array(vec![text(category), text("retail"), Value::Integer(index as i64)]),
                ),
                ("thumbnail", Value::Bytes(thumbnail)),
                ("embedding", embedding),
                ("added_at", added),
                ("discontinued", Value::Boolean(index.is_multiple_of(37))),
            ],
        );
        for review in 0..self.below(4) {
            let user = self.below(self.size.users);
            let (stars, body, at) = (self.random.random_range(1..=5), self.sentence(), self.time(300));
            self.put(
                format!("products/{id}/reviews/r{review}"),
                [
                    ("stars", Value::Integer(stars)),
                    ("text", text(&body)),
                    ("author", reference(format!("users/u{user:06}"))),
                    ("at", at),
                ],
            );
        }
    }

    fn user(&mut self, index: usize) {
        let id = format!("u{index:06}");
        let name = format!("{} {}", self.pick(&FIRST_NAMES), self.pick(&LAST_NAMES));
        let (joined, seen) = (self.time(1_500), self.time(30));
        let points = self.random.random_range(0..50_000);
        self.put(
            format!("users/{id}"),
            [
                ("name", text(&name)),
                ("email", text(&format!("{id}@example.com"))),
                ("joined_at", joined),
                ("last_seen", seen),
                ("points", Value::Integer(points)),
                ("phone", Value::Null),
                (
                    "preferences",
                    map([
                        (
                            "theme",
                            text(if index.is_multiple_of(3) { "dark" } else { "auto" }),
                        ),
                        (
                            "language",
                            text(if index.is_multiple_of(5) { "fr" } else { "en" }),
                        ),
                        (
                            "notifications",
                            map([("email", Value::Boolean(true)), ("push", Value::Null)]),
                        ),
                    ]),
                ),
            ],
        );
        for address in 0..=self.below(2) {
            let (city, country, latitude, longitude) = CITIES[self.below(CITIES.len())];
            let street = format!("{} {}", self.random.random_range(1..200), self.pick(&NOUNS));
            self.put(
                format!("users/{id}/addresses/a{address}"),
                [
                    ("street", text(&street)),
                    ("city", text(city)),
                    ("country", text(country)),
                    ("position", Value::GeoPoint(GeoPoint { latitude, longitude })),
                ],
            );
        }
    }

    fn order(&mut self, index: usize) {
        let id = format!("o{index:07}");
        let user = self.below(self.size.users);
        let (placed, lines) = (self.time(365), 1 + self.below(3));
        let mut total = 0.0;
        for line in 0..lines {
            let product = self.below(self.size.products);
            let (price, quantity) = (self.price(), self.random.random_range(1..5));
            total += price * quantity as f64;
            self.put(
                format!("orders/{id}/lines/{line}"),
                [
                    ("product", reference(format!("products/p{product:06}"))),
                    ("quantity", Value::Integer(quantity)),
                    ("unit_price", Value::Double(price)),
                ],
            );
        }
        let status = self.pick(&STATUSES);
        if status == "shipped" {
            let at = self.time(20);
            self.put(
                format!("orders/{id}/shipments/s0"),
                [
                    ("carrier", text("Brieftaube")),
                    ("left_at", at),
                    ("parcels", Value::Integer(lines as i64)),
                ],
            );
        }
        self.put(
            format!("orders/{id}"),
            [
                ("user", reference(format!("users/u{user:06}"))),
                ("status", text(status)),
                ("placed_at", placed),
                ("total", Value::Double(total)),
                ("line_count", Value::Integer(lines as i64)),
                (
                    "invoice_number",
                    Value::Integer(9_007_199_254_740_993 + index as i64),
                ),
            ],
        );
    }

    fn feedback(&mut self, index: usize) {
        let (body, at, user) = (self.sentence(), self.time(200), self.below(self.size.users));
        let score = match index % 50 {
            0 => f64::NAN,
            1 => f64::NEG_INFINITY,
            2 => -0.0,
            _ => f64::from(self.random.random_range(-100i32..100)) / 100.0,
        };
        self.put(
            // Numeric ids as a database that came from Datastore has them cannot be written today; these are
            // the rest of what makes ids awkward.
            format!("feedback/{index} ünïcödé %2F.x"),
            [
                ("text", text(&body)),
                ("at", at),
                ("from", reference(format!("users/u{user:06}"))),
                ("sentiment", Value::Double(score)),
            ],
        );
    }

    fn analytics_day(&mut self, index: usize) {
        // The day itself is never written: a missing document with a collection below it.
        for hour in 0..24 {
            let views = self.random.random_range(0..90_000);
            let rate = self.random.random_range(0.0..0.2);
            self.put(
                format!("analytics/day-{index:04}/hours/{hour:02}"),
                [
                    ("views", Value::Integer(views)),
                    ("conversion", Value::Double(rate)),
                ],
            );
        }
    }

    fn recommendation(&mut self, index: usize) {
        let mut items = Vec::new();
        for _ in 0..5 {
            let product = self.below(self.size.products);
            let score = self.random.random_range(0.0..1.0);
            items.push(map([
                ("product", reference(format!("products/p{product:06}"))),
                ("score", Value::Double(score)),
            ]));
        }
        let (made, taste) = (self.time(2), self.vector(8));
        self.put(
            format!("recommendations/u{index:06}"),
            [
                ("items", Value::Array(items)),
                ("made_at", made),
                ("taste", taste),
            ],
        );
        if index == 0 {
            self.put("recommendations/empty".to_owned(), []);
            self.put(
                "recommendations/elsewhere".to_owned(),
                [(
                    "model",
                    Value::Reference(Reference::Absolute(
                        "projects/retail-models/databases/(default)/documents/models/m1".to_owned(),
                    )),
                )],
            );
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries: BTreeMap<String, Value> = entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    Value::Map(entries)
}

fn reference(path: String) -> Value {
    match DocumentPath::parse(path) {
        Ok(path) => Value::Reference(Reference::Relative(path)),
        Err(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_same_seed_gives_the_same_documents_and_no_path_twice() {
        let first: Vec<_> = documents(RetailSize::SMALL, 7).collect();
        let second: Vec<_> = documents(RetailSize::SMALL, 7).collect();
        assert!(first == second);
        let paths: HashSet<&str> = first.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths.len(), first.len());
        assert!(
            first
                .iter()
                .all(|(path, _)| path.as_str() != "analytics/day-0000")
        );
    }
}
