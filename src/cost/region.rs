//! Whether what is read of a database and put into a bucket leaves the region that it is in.
//!
//! Bytes that stay in a region are free, or nearly; those that leave it are billed for each GiB, and those that leave the cloud most
//! of all (<https://cloud.google.com/firestore/pricing#network>, <https://cloud.google.com/storage/pricing#network-pricing>). A full backup in
//! the wrong place can cost more for that than for its reads. Only what is known for sure is told: a bucket whose place nobody
//! has said is passed over in silence, and so is one in a multi-region that may have the data near.

use std::fmt;

use crate::store::{Address, BucketOptions, Provider};

/// The variable that says where a bucket of Google's is: to ask for that takes a right that backups do not need.
const BUCKET_LOCATION: &str = "FIREBANK_BUCKET_LOCATION";

/// Where a bucket is, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketPlace {
    /// Google Cloud Storage: a region, a dual-region or a multi-region, such as `us-central1`, `NAM4` or `EU`.
    Google(String),
    /// Another cloud, by its name, with the region where it is known.
    Elsewhere {
        /// Whose it is.
        cloud: &'static str,
        /// Where in it.
        region: Option<String>,
    },
}

impl BucketPlace {
    /// The place of an address, by what the environment says of it. `None` for a folder, for what nobody has said, and for
    /// services that only speak a protocol of one of the three.
    pub fn of(address: &Address, options: &BucketOptions) -> Option<Self> {
        let Address::Bucket(bucket) = address else {
            return None;
        };
        let variable = |name: &str| options.variables.get(name).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name)).cloned();
        match bucket.provider {
            Provider::Gcs => first(&[BUCKET_LOCATION]).map(Self::Google),
            Provider::S3 => {
                let other = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
                let region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
                other.is_none().then_some(Self::Elsewhere {
                    cloud: "Amazon S3",
                    region,
                })
            }
            Provider::Azure => {
                let other = first(&["AZURE_STORAGE_USE_EMULATOR", "AZURE_STORAGE_ENDPOINT"]);
                other.is_none().then_some(Self::Elsewhere {
                    cloud: "Azure Blob Storage",
                    region: None,
                })
            }
        }
    }
}

/// Bytes leave the database's region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Where the database is.
    pub database: String,
    /// Where the bucket is.
    pub bucket: BucketPlace,
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the database is in {}, and the repository's bucket in ",
            self.database
        )?;
        match &self.bucket {
            BucketPlace::Google(place) => write!(f, "{}", place.to_ascii_lowercase())?,
            BucketPlace::Elsewhere { cloud, region: None } => f.write_str(cloud)?,
            BucketPlace::Elsewhere {
                cloud,
                region: Some(region),
            } => write!(f, "{region} of {cloud}")?,
        }
        f.write_str(": what goes from one to the other leaves the region, which is billed for each GiB")
    }
}

/// The regions that a location of Firestore has its data in
/// (<https://cloud.google.com/firestore/docs/locations>).
fn regions(location: &str) -> Vec<&str> {
    match location {
        "nam5" => vec!["us-central1", "us-east1", "us-central2"],
        "nam7" => vec!["us-central1", "us-east4"],
        "eur3" => vec!["europe-west1", "europe-west4"],
        region => vec![region],
    }
}

/// The regions of a place of Cloud Storage, as beginnings of their names
/// (<https://cloud.google.com/storage/docs/locations>).
fn covered(place: &str) -> Vec<&str> {
    match place {
        "us" => vec!["us-"],
        "eu" => vec!["europe-"],
        "asia" => vec!["asia-"],
        "nam4" => vec!["us-central1", "us-east1"],
        "eur4" => vec!["europe-north1", "europe-west4"],
        "eur5" => vec!["europe-west1", "europe-west2"],
        "eur7" => vec!["europe-west2", "europe-west3"],
        "eur8" => vec!["europe-west3", "europe-west6"],
        "asia1" => vec!["asia-northeast1", "asia-northeast2"],
        region => vec![region],
    }
}

/// Whether bytes from a database to a bucket leave a region, where both are known; another cloud always is another region.
pub fn crossing(database: &str, bucket: &BucketPlace) -> Option<Crossing> {
    let crosses = match bucket {
        BucketPlace::Elsewhere { .. } => true,
        BucketPlace::Google(place) => {
            let place = place.to_ascii_lowercase();
            let covered = covered(&place);
            let regions = regions(database);
            let is_near = |region: &&str| {
                covered
                    .iter()
                    .any(|name| region == name || name.ends_with('-') && region.starts_with(name))
            };
            !regions.iter().any(is_near)
        }
    };
    crosses.then(|| Crossing {
        database: database.to_owned(),
        bucket: bucket.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crosses(database: &str, bucket: &str) -> bool {
        crossing(database, &BucketPlace::Google(bucket.to_owned())).is_some()
    }

    #[test]
    fn regions_are_compared_with_what_they_are_part_of() {
        for (database, near) in [
            ("nam5", "us-central1"),
            ("nam5", "US-EAST1"),
            ("nam5", "US"),
            ("nam5", "NAM4"),
            ("eur3", "europe-west1"),
            ("eur3", "EU"),
            ("eur3", "EUR4"),
            ("us-central1", "us-central1"),
            ("europe-west3", "EUR8"),
            ("asia-northeast1", "ASIA1"),
        ] {
            assert!(!crosses(database, near), "{database} {near}");
        }
        for (database, far) in [
            ("nam5", "europe-west1"),
            ("nam5", "EU"),
            ("nam5", "us-west1"),
            ("eur3", "us-central1"),
            ("eur3", "europe-west3"),
            ("us-central1", "us-central"),
            ("us-central1", "us-east1"),
            ("us-east4", "EU"),
            ("europe-west1", "ASIA"),
        ] {
            assert!(crosses(database, far), "{database} {far}");
        }
    }

    #[test]
    fn a_place_is_what_the_environment_says() {
        let place = |address: &str, variables: &[(&str, &str)]| {
            let variables = variables.iter();
            let options = BucketOptions {
                variables: variables
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                ..BucketOptions::default()
            };
            BucketPlace::of(&address.parse().unwrap(), &options)
        };
        assert_eq!(place("backups", &[("AWS_REGION", "eu-west-1")]), None);
        assert_eq!(place("gs://bucket/p", &[]), None);
        let google = place("gs://bucket/p", &[(BUCKET_LOCATION, "EU")]);
        assert_eq!(google, Some(BucketPlace::Google("EU".to_owned())));
        let amazon = |region: Option<&str>| {
            Some(BucketPlace::Elsewhere {
                cloud: "Amazon S3",
                region: region.map(str::to_owned),
            })
        };
        assert_eq!(place("s3://bucket/p", &[]), amazon(None));
        assert_eq!(
            place("s3://bucket/p", &[("AWS_DEFAULT_REGION", "eu-west-1")]),
            amazon(Some("eu-west-1"))
        );
        // Somebody's own service may be next door.
        let own = [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
            ("AWS_REGION", "eu-west-1"),
        ];
        assert_eq!(place("s3://bucket/p", &own), None);
        assert!(place("az://container/p", &[]).is_some());
        assert_eq!(
            place("az://container/p", &[("AZURE_STORAGE_USE_EMULATOR", "true")]),
            None
        );
    }

    #[test]
    fn another_cloud_is_always_elsewhere() {
        let s3 = |region: Option<&str>| BucketPlace::Elsewhere {
            cloud: "Amazon S3",
            region: region.map(str::to_owned),
        };
        let told = crossing("eur3", &s3(Some("eu-west-1"))).unwrap().to_string();
        assert!(
            told.contains("eur3") && told.contains("eu-west-1 of Amazon S3"),
            "{told}"
        );
        assert!(
            crossing("eur3", &s3(None))
                .unwrap()
                .to_string()
                .contains("in Amazon S3:")
        );
    }
}
