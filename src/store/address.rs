//! Where a repository is, as a user writes it: a folder, or a bucket with a prefix.
//!
//! An address names a place and holds no secret: one that carries a password or a signature is refused, and
//! not repeated in the message, for addresses end up in logs, in shell histories and in `--json` output.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use object_store::path::Path as ObjectPath;

/// A service that keeps buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Amazon S3, or a service that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage, whose buckets are called containers.
    Azure,
}

impl Provider {
    /// The scheme of its addresses.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }

    /// What it calls a bucket.
    pub(super) fn bucket_word(self) -> &'static str {
        match self {
            Self::S3 | Self::Gcs => "bucket",
            Self::Azure => "container",
        }
    }
}

/// A bucket, and the prefix in it below which the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketAddress {
    /// Who keeps it.
    pub provider: Provider,
    /// The bucket, or Azure's container.
    pub bucket: String,
    /// Azure's storage account where the address names it; else the environment does.
    pub account: Option<String>,
    /// Without slashes at its ends; the empty string for the whole bucket.
    pub prefix: String,
}

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A folder on a local disk.
    Folder(PathBuf),
    /// A bucket.
    Bucket(BucketAddress),
}

/// An address that names no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// It is the empty string.
    #[error(
        "the address is empty: give a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    )]
    Empty,
    /// Nothing is kept by this name.
    #[error("`{scheme}://` addresses are not supported: {hint}")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
        /// What to write instead.
        hint: &'static str,
    },
    /// It carries what looks like a secret. The address is left out on purpose.
    #[error(
        "the `{scheme}://` address holds a user name, a password or a query: credentials belong into the environment, \
         where no log shows them"
    )]
    Secret {
        /// The scheme.
        scheme: String,
    },
    /// The bucket's name is none.
    #[error("`{address}` names no bucket: {what}")]
    BadBucket {
        /// The address.
        address: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The prefix can be no object's.
    #[error("`{address}` has a prefix that no object can have: {what}")]
    BadPrefix {
        /// The address.
        address: String,
        /// What is wrong.
        what: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Folder(PathBuf::from(text)));
        };
        let hadoop = matches!(scheme, "abfs" | "abfss");
        let provider = match scheme {
            "file" => return folder_of_url(text, rest),
            "s3" | "s3a" => Provider::S3,
            "gs" => Provider::Gcs,
            "az" | "azure" | "abfs" | "abfss" => Provider::Azure,
            _ => return Err(unknown_scheme(scheme)),
        };
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (bucket, account) = match authority.split_once('@') {
            Some((container, host)) if hadoop => (container, Some(account_of_host(text, host)?)),
            Some(_) => return Err(secret(scheme)),
            None => (authority, None),
        };
        if rest.contains('?') || bucket.contains(':') {
            return Err(secret(scheme));
        }
        check_bucket(text, bucket)?;
        let prefix = prefix.trim_matches('/');
        let parsed = ObjectPath::parse(prefix).map_err(|error| AddressError::BadPrefix {
            address: text.to_owned(),
            what: error.to_string(),
        })?;
        Ok(Self::Bucket(BucketAddress {
            provider,
            bucket: bucket.to_owned(),
            account,
            prefix: parsed.as_ref().to_owned(),
        }))
    }
}

fn folder_of_url(text: &str, path: &str) -> Result<Address, AddressError> {
    match path.strip_prefix("localhost").unwrap_or(path) {
        path if path.starts_with('/') => Ok(Address::Folder(PathBuf::from(path))),
        _ => Err(AddressError::BadPrefix {
            address: text.to_owned(),
            what: "a file:// address has a path that begins with /".to_owned(),
        }),
    }
}

fn unknown_scheme(scheme: &str) -> AddressError {
    let hint = match scheme {
        "gcs" => "write gs://BUCKET/PREFIX",
        "http" | "https" => {
            "write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; a service of another host is \
             named by AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST or AZURE_STORAGE_ENDPOINT"
        }
        _ => "give a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX",
    };
    AddressError::UnknownScheme {
        scheme: scheme.to_owned(),
        hint,
    }
}

fn secret(scheme: &str) -> AddressError {
    AddressError::Secret {
        scheme: scheme.to_owned(),
    }
}

/// The account in `ACCOUNT.dfs.core.windows.net`.
fn account_of_host(text: &str, host: &str) -> Result<String, AddressError> {
    match host.split_once('.') {
        Some((account, "dfs.core.windows.net" | "blob.core.windows.net")) if !account.is_empty() => {
            Ok(account.to_owned())
        }
        _ => Err(AddressError::BadBucket {
            address: text.to_owned(),
            what: "after the @ comes ACCOUNT.dfs.core.windows.net",
        }),
    }
}

/// What all three services allow in a name; whether there is such a bucket they say themselves.
fn check_bucket(text: &str, bucket: &str) -> Result<(), AddressError> {
    let fits = bucket
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'$'));
    let what = match bucket.len() {
        0 => "it is missing",
        3..=222 if fits => return Ok(()),
        3..=222 => "it is made of letters, digits, hyphens, dots and underscores",
        _ => "it has 3 to 222 characters",
    };
    Err(AddressError::BadBucket {
        address: text.to_owned(),
        what,
    })
}

impl fmt::Display for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.account {
            Some(account) => write!(f, "abfss://{}@{account}.dfs.core.windows.net", self.bucket)?,
            None => write!(f, "{}://{}", self.provider.scheme(), self.bucket)?,
        }
        match self.prefix.as_str() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    fn bucket(text: &str) -> BucketAddress {
        match text.parse().unwrap() {
            Address::Bucket(bucket) => bucket,
            Address::Folder(folder) => panic!("{text} is the folder {}", folder.display()),
        }
    }

    #[test]
    fn addresses_name_buckets_and_folders() {
        for (text, provider, name, prefix, shown) in [
            ("s3://shop", Provider::S3, "shop", "", "s3://shop"),
            ("s3://shop/", Provider::S3, "shop", "", "s3://shop"),
            ("s3a://shop/a/b/", Provider::S3, "shop", "a/b", "s3://shop/a/b"),
            (
                "gs://my_shop.example/x",
                Provider::Gcs,
                "my_shop.example",
                "x",
                "gs://my_shop.example/x",
            ),
            (
                "az://shop/nightly",
                Provider::Azure,
                "shop",
                "nightly",
                "az://shop/nightly",
            ),
            (
                "abfs://shop/nightly",
                Provider::Azure,
                "shop",
                "nightly",
                "az://shop/nightly",
            ),
        ] {
            let address = bucket(text);
            assert_eq!(
                (
                    address.provider,
                    &*address.bucket,
                    &*address.prefix,
                    &*address.to_string()
                ),
                (provider, name, prefix, shown)
            );
        }
        let hadoop = "abfss://shop@account.dfs.core.windows.net/nightly";
        assert_eq!(bucket(hadoop).account.as_deref(), Some("account"));
        assert_eq!(bucket(hadoop).to_string(), hadoop);
        for (text, folder) in [
            ("backups", "backups"),
            ("/srv/b", "/srv/b"),
            ("file:///srv/b", "/srv/b"),
        ] {
            assert_eq!(text.parse(), Ok(Address::Folder(PathBuf::from(folder))));
        }
    }

    #[test]
    fn what_names_no_place_is_refused_with_a_hint() {
        for (text, says) in [
            ("", "empty"),
            ("ftp://shop/x", "s3://BUCKET"),
            ("gcs://shop/x", "gs://"),
            ("https://s3.amazonaws.com/shop", "AWS_ENDPOINT_URL"),
            ("s3://", "missing"),
            ("s3:///x", "missing"),
            ("s3://ab", "3 to 222"),
            ("s3://my shop/x", "letters"),
            ("s3://shop/a//b", "prefix"),
            ("s3://shop/../b", "prefix"),
            ("file://host/x", "begins with /"),
            ("abfss://shop@account.example.com/x", "ACCOUNT.dfs"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_in_an_address_are_not_repeated() {
        for text in [
            "s3://key:hidden@shop/x",
            "s3://key:hidden/x",
            "az://shop/x?sv=2024&sig=hidden",
            "gs://shop?token=hidden",
            "abfss://shop:hidden@account.dfs.core.windows.net/x",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(!error.to_string().contains("hidden"), "{error}");
            assert!(error.to_string().contains("environment"), "{error}");
        }
    }
}
