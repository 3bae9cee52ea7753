//! Real servers for the three kinds of buckets, each behind a [`Front`] that counts its requests and can make
//! trouble.
//!
//! S3 is s3s with its file system backend, in this process. Google Cloud Storage is the same behind a change
//! of headers, because the client speaks the XML interface, which is S3's but for them, and Google's own
//! emulators do not. Azure is Microsoft's Azurite, a child of this process.

mod azurite;
mod front;

use std::collections::BTreeMap;
use std::time::Duration;

use firebank::store::{Address, BucketOptions, Store};

pub(crate) use front::{Asked, Front, Trouble};

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    S3,
    Gcs,
    Azure,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::S3, Kind::Gcs, Kind::Azure];

/// The bucket that every server has.
pub(crate) const BUCKET: &str = "firebank-test";
/// A part of every secret that tests make up, which no message may show.
pub(crate) const SECRET: &str = "c2VjcmV0";
/// A part of the key of Azure's emulator.
pub(crate) const AZURE_SECRET: &str = "Eby8vdM02xNOcqFl";

/// A server with an empty bucket, until it is dropped.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) front: Front,
    container: String,
    _folder: Option<tempfile::TempDir>,
}

impl Server {
    /// `None` where the server is not installed: that was said on standard error.
    pub(crate) async fn start(kind: Kind) -> Option<Self> {
        let (front, container, folder) = match kind {
            Kind::S3 | Kind::Gcs => {
                let folder = tempfile::tempdir().unwrap();
                std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
                let front = Front::of_folder(folder.path(), kind == Kind::Gcs).await;
                (front, BUCKET.to_owned(), Some(folder))
            }
            Kind::Azure => {
                let upstream = azurite::azurite()?;
                let container = azurite::new_container(upstream).await;
                (Front::of_server(upstream).await, container, None)
            }
        };
        Some(Self {
            kind,
            front,
            container,
            _folder: folder,
        })
    }

    /// A repository's address in the bucket.
    pub(crate) fn address(&self, prefix: &str) -> String {
        let scheme = match self.kind {
            Kind::S3 => "s3",
            Kind::Gcs => "gs",
            Kind::Azure => "az",
        };
        format!("{scheme}://{}/{prefix}", self.container)
    }

    /// What the environment says of the server.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        let url = format!("http://{}", self.front.address());
        let variables: Vec<(&str, String)> = match self.kind {
            Kind::S3 => vec![
                ("AWS_ENDPOINT_URL", url),
                ("AWS_ACCESS_KEY_ID", front::S3_KEY.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", front::S3_SECRET.to_owned()),
                ("AWS_REGION", "eu-central-1".to_owned()),
            ],
            Kind::Gcs => vec![("STORAGE_EMULATOR_HOST", url)],
            Kind::Azure => vec![
                ("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()),
                ("AZURITE_BLOB_STORAGE_URL", url),
            ],
        };
        variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// With pauses that tests can wait for.
    pub(crate) fn options(&self) -> BucketOptions {
        BucketOptions {
            variables: self.variables(),
            first_pause: Duration::from_millis(10),
            ..BucketOptions::default()
        }
    }

    /// The objects below a prefix.
    pub(crate) fn store(&self, prefix: &str) -> Store {
        self.store_with(prefix, &self.options())
    }

    pub(crate) fn store_with(&self, prefix: &str, options: &BucketOptions) -> Store {
        let address: Address = self.address(prefix).parse().unwrap();
        Store::open(&address, options).unwrap()
    }
}
