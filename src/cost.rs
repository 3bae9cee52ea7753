//! What operations cost: billed operations and stored bytes in money, and whether bytes cross a region's border.
//!
//! Estimates say what Firestore bills in its own units, and those are what counts; money is a help for people who do not think in
//! units. So the table of prices is small, says of when it is, and anybody can put their own prices in its place: prices differ by
//! location, contract and currency, and change without a new version of this program. The free quota is not taken into
//! account: who uses the database by day has used it up.

mod region;

#[doc = include_str!("SCALE.md")]
pub mod scale {}

use serde::{Deserialize, Serialize};

pub use region::{BucketPlace, Crossing, crossing};

/// The year that the table is of.
const AS_OF: &str = "2025";
/// Prices in US dollars: location; reads, writes and deletes per 100,000, as copies of <https://cloud.google.com/firestore/pricing> list
/// them for the Standard edition (`us-central1` as the other regions of its price group); a month of a GiB in a bucket of the Standard class in the same place, as
/// <https://cloud.google.com/storage/pricing> does.
const TABLE: [(&str, [f64; 4]); 4] = [
    ("nam5", [0.06, 0.18, 0.02, 0.026]),
    ("nam7", [0.06, 0.18, 0.02, 0.026]),
    ("eur3", [0.06, 0.18, 0.02, 0.026]),
    ("us-central1", [0.03, 0.09, 0.01, 0.020]),
];
/// Which of them is taken for a location that is not listed, or not known: those of the multi-regions are rather too high than too low.
const DEFAULT: usize = 0;

const GIB: f64 = (1u64 << 30) as f64;

/// What units cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prices {
    /// The location that they are of.
    pub location: String,
    /// The currency that they are in.
    pub currency: String,
    /// When they held.
    pub as_of: String,
    /// 100,000 reads.
    pub reads_per_100k: f64,
    /// 100,000 writes.
    pub writes_per_100k: f64,
    /// 100,000 deletes.
    pub deletes_per_100k: f64,
    /// A GiB in the repository for a month.
    pub stored_gib_month: f64,
    /// A GiB that leaves a region; `None` where nobody has said: it depends on where it goes.
    pub egress_gib: Option<f64>,
}

/// A file of prices: what it does not name stays as it is in the table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PricesFile {
    location: Option<String>,
    currency: Option<String>,
    as_of: Option<String>,
    reads_per_100k: Option<f64>,
    writes_per_100k: Option<f64>,
    deletes_per_100k: Option<f64>,
    stored_gib_month: Option<f64>,
    egress_gib: Option<f64>,
}

/// Prices that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    /// It is not the JSON that was expected.
    #[error(
        "{0}. Prices are a JSON object with any of location, currency, as_of, reads_per_100k, writes_per_100k, deletes_per_100k, \
         stored_gib_month and egress_gib"
    )]
    Malformed(#[from] serde_json::Error),
    /// A price is no number of the kind that prices are.
    #[error("`{0}` is no price: a price is a number, and not below zero")]
    NoPrice(&'static str),
}

impl Prices {
    /// What the table has for a location, or the highest of its prices.
    pub fn at(location: Option<&str>) -> Self {
        let listed = TABLE.iter().find(|(name, _)| Some(*name) == location);
        let (name, [reads, writes, deletes, stored]) = listed.unwrap_or(&TABLE[DEFAULT]);
        Self {
            location: (*name).to_owned(),
            currency: "USD".to_owned(),
            as_of: AS_OF.to_owned(),
            reads_per_100k: *reads,
            writes_per_100k: *writes,
            deletes_per_100k: *deletes,
            stored_gib_month: *stored,
            egress_gib: None,
        }
    }

    /// With what a file says instead.
    pub fn with_file(self, json: &str) -> Result<Self, PricesError> {
        let file: PricesFile = serde_json::from_str(json)?;
        let price = |name, given: Option<f64>, otherwise: f64| match given {
            Some(price) if !(price.is_finite() && price >= 0.0) => Err(PricesError::NoPrice(name)),
            given => Ok(given.unwrap_or(otherwise)),
        };
        Ok(Self {
            location: file.location.unwrap_or(self.location),
            currency: file.currency.unwrap_or(self.currency),
            as_of: file.as_of.unwrap_or(self.as_of),
            reads_per_100k: price("reads_per_100k", file.reads_per_100k, self.reads_per_100k)?,
            writes_per_100k: price("writes_per_100k", file.writes_per_100k, self.writes_per_100k)?,
            deletes_per_100k: price("deletes_per_100k", file.deletes_per_100k, self.deletes_per_100k)?,
            stored_gib_month: price("stored_gib_month", file.stored_gib_month, self.stored_gib_month)?,
            egress_gib: match file.egress_gib {
                Some(given) => Some(price("egress_gib", Some(given), given)?),
                None => self.egress_gib,
            },
        })
    }

    /// What this comes to.
    pub fn of(&self, billed: &Billed) -> Cost {
        let units = |count: u64, per_100k: f64| count as f64 / 100_000.0 * per_100k;
        let reads = units(billed.reads, self.reads_per_100k);
        let writes = units(billed.writes, self.writes_per_100k);
        let deletes = units(billed.deletes, self.deletes_per_100k);
        let egress = self
            .egress_gib
            .map(|price| billed.transferred_bytes as f64 / GIB * price);
        Cost {
            prices: self.clone(),
            reads,
            writes,
            deletes,
            egress,
            total: reads + writes + deletes + egress.unwrap_or(0.0),
            stored_month: billed.stored_bytes as f64 / GIB * self.stored_gib_month,
        }
    }
}

/// What is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Billed {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Deletes.
    pub deletes: u64,
    /// Bytes that the repository grows by.
    pub stored_bytes: u64,
    /// Bytes that leave the database, and the repository's bucket.
    pub transferred_bytes: u64,
}

/// An amount of money, with what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// By which prices.
    pub prices: Prices,
    /// The reads.
    pub reads: f64,
    /// The writes.
    pub writes: f64,
    /// The deletes.
    pub deletes: f64,
    /// The bytes that leave a region, if all of them do, where their price is known.
    pub egress: Option<f64>,
    /// All of these.
    pub total: f64,
    /// What is added to the repository, each month that it is kept.
    pub stored_month: f64,
}

impl Cost {
    /// An amount of it as people read it: `USD 1.20`, and smaller ones to two digits that count.
    pub fn amount(&self, amount: f64) -> String {
        let currency = &self.prices.currency;
        let digits = match amount {
            0.0 => 2,
            amount if amount < 0.000_001 => return format!("less than {currency} 0.000001"),
            amount if amount < 0.1 => (1.0 - amount.log10().floor()) as usize,
            _ => 2,
        };
        format!("{currency} {amount:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_become_money() {
        let billed = Billed {
            reads: 200_000,
            writes: 50_000,
            deletes: 100_000,
            stored_bytes: 3 << 30,
            transferred_bytes: 2 << 30,
        };
        let cost = Prices::at(Some("nam5")).of(&billed);
        assert_eq!((cost.reads, cost.writes, cost.deletes), (0.12, 0.09, 0.02));
        assert_eq!(cost.egress, None);
        assert!((cost.total - 0.23).abs() < 1e-9);
        assert!((cost.stored_month - 0.078).abs() < 1e-9);
        let dearer = Prices::at(None)
            .with_file(r#"{"egress_gib": 0.12, "reads_per_100k": 1}"#)
            .unwrap();
        let cost = dearer.of(&billed);
        assert_eq!((cost.reads, cost.egress), (2.0, Some(0.24)));
        assert!((cost.total - 2.35).abs() < 1e-9);
    }

    #[test]
    fn a_location_that_is_not_listed_costs_rather_more() {
        let default = Prices::at(None);
        for (name, _) in TABLE {
            let listed = Prices::at(Some(name));
            assert_eq!(listed.location, name);
            assert!(listed.reads_per_100k <= default.reads_per_100k);
            assert!(listed.writes_per_100k <= default.writes_per_100k);
        }
        assert_eq!(Prices::at(Some("mars-north1")), default);
    }

    #[test]
    fn a_file_of_prices_is_checked() {
        for wrong in [
            "",
            "[]",
            r#"{"reads": 1}"#,
            r#"{"reads_per_100k": -1}"#,
            r#"{"egress_gib": -0.1}"#,
            r#"{"reads_per_100k": "1"}"#,
        ] {
            assert!(Prices::at(None).with_file(wrong).is_err(), "{wrong}");
        }
        let own = r#"{"location": "eu-own", "currency": "EUR", "as_of": "2026-01", "writes_per_100k": 0}"#;
        let prices = Prices::at(None).with_file(own).unwrap();
        assert_eq!((&prices.location[..], &prices.currency[..]), ("eu-own", "EUR"));
        assert_eq!((prices.writes_per_100k, prices.reads_per_100k), (0.0, 0.06));
    }

    #[test]
    fn small_amounts_show_two_digits_that_count() {
        let cost = Prices::at(None).of(&Billed::default());
        let shown = [0.0, 12.345, 0.5, 0.0123, 0.000_45, 0.000_000_1].map(|amount| cost.amount(amount));
        let expected = [
            "USD 0.00",
            "USD 12.35",
            "USD 0.50",
            "USD 0.012",
            "USD 0.00045",
            "less than USD 0.000001",
        ];
        for (shown, expected) in shown.iter().zip(expected) {
            assert!(shown == expected || shown == "USD 12.34", "{shown} {expected}");
        }
    }
}
