//! Buckets of the three big services, by their usual environment variables.
//!
//! The client library reads most variables by itself; here are those that users of each service's own tools
//! expect besides, and the time-outs, retries and refusals that a backup wants. The variables are taken as a
//! map and not from the process, so that tests can connect to several services at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, HeaderValue, ObjectStore, RetryConfig};

use super::profile::Profile;
use super::transport::{Patience, Transport};
use super::{BucketAddress, Provider, StoreError};

/// The storage emulator's account and its key, which are the same everywhere
/// (<https://learn.microsoft.com/azure/storage/common/storage-use-azurite>).
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// How to talk to a bucket. The defaults suit the three services over the internet.
#[derive(Clone, Debug)]
pub struct BucketOptions {
    /// Environment variables by name: credentials and endpoints.
    pub variables: BTreeMap<String, String>,
    /// A key file for Google Cloud, ahead of what the environment says.
    pub google_credentials: Option<PathBuf>,
    /// A request that brings no byte for this long is given up, and tried again.
    pub stall: Duration,
    /// An upload may be this slow before it is given up, in bytes a second.
    pub slowest_upload: u64,
    /// How often a request is tried again.
    pub max_retries: usize,
    /// How long a request is tried again, from its start.
    pub retry_for: Duration,
    /// The pause before the first retry; later ones are longer, and random.
    pub first_pause: Duration,
}

impl Default for BucketOptions {
    fn default() -> Self {
        Self {
            variables: BTreeMap::new(),
            google_credentials: None,
            stall: Duration::from_secs(30),
            slowest_upload: 64 << 10,
            max_retries: 10,
            retry_for: Duration::from_secs(180),
            first_pause: Duration::from_millis(200),
        }
    }
}

impl BucketOptions {
    /// With the variables of this process.
    pub fn from_environment() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        Self {
            variables,
            ..Self::default()
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The variables that begin with `prefix`, where the client library knows them.
    fn known<K: FromStr>(&self, prefix: &str) -> Vec<(K, &str)> {
        let ours = self.variables.iter().filter(|(name, _)| name.starts_with(prefix));
        ours.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
            .collect()
    }

    fn retry(&self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: self.first_pause,
                max_backoff: Duration::from_secs(15),
                base: 2.0,
            },
            max_retries: self.max_retries,
            retry_timeout: self.retry_for,
        }
    }

    fn transport(&self) -> Transport {
        let usual = ["169.254.169.254", "metadata.google.internal"].map(str::to_owned);
        let given = [
            ("AWS_METADATA_ENDPOINT", "http://"),
            ("GCE_METADATA_HOST", ""),
            ("GCE_METADATA_IP", ""),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, scheme)| self.variable(name)?.strip_prefix(scheme));
        Transport {
            patience: Patience {
                stall: self.stall,
                slowest_upload: self.slowest_upload,
            },
            metadata: usual.into_iter().chain(given.map(str::to_owned)).collect(),
        }
    }

    /// Whole requests have no time-out of the library's: [`Transport`] watches them.
    fn client(&self, endpoint: Option<&str>) -> ClientOptions {
        ClientOptions::new()
            .with_user_agent(HeaderValue::from_static(concat!(
                "firebank/",
                env!("CARGO_PKG_VERSION")
            )))
            .with_timeout_disabled()
            .with_connect_timeout(Duration::from_secs(10).min(self.stall))
            // Whoever writes http:// means it.
            .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
    }
}

/// Connects to a bucket; asks it nothing.
pub(super) fn connect(
    address: &BucketAddress,
    options: &BucketOptions,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let unusable = |what: String| StoreError::Settings {
        location: address.to_string(),
        what,
    };
    let built = match address.provider {
        Provider::S3 => s3(address, options).map_err(&unusable)?,
        Provider::Gcs => gcs(address, options),
        Provider::Azure => azure(address, options).map_err(&unusable)?,
    };
    let objects = built.map_err(|error| unusable(in_words(&error)))?;
    Ok(match address.prefix.as_str() {
        "" => objects,
        prefix => Arc::new(PrefixStore::new(objects, prefix)),
    })
}

type Built = object_store::Result<Arc<dyn ObjectStore>>;

/// What the library says, without the service's name in front.
fn in_words(error: &object_store::Error) -> String {
    match error {
        object_store::Error::Generic { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}

fn s3(address: &BucketAddress, options: &BucketOptions) -> Result<Built, String> {
    let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .into_iter()
        .find_map(|name| options.variable(name));
    // A profile says less than a variable does.
    let profile = Profile::find(&options.variables)?;
    let endpoint = endpoint.or(profile.endpoint.as_deref());
    let mut builder = AmazonS3Builder::new().with_client_options(options.client(endpoint));
    if endpoint.is_none() {
        // Amazon wants a checksum where a bucket locks its objects, and this one is made for the signature
        // anyway. Other services need not know the header.
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    for (key, value) in profile.settings() {
        builder = builder.with_config(key, value);
    }
    for (key, value) in options.known::<AmazonS3ConfigKey>("AWS_") {
        builder = builder.with_config(key, value);
    }
    let builder = builder
        .with_bucket_name(&address.bucket)
        // Objects are deleted one at a time here, and a bulk request hides a refusal in an answer that says OK.
        .with_disable_bulk_delete(true)
        .with_http_connector(options.transport())
        .with_retry(options.retry());
    Ok(builder.build().map(|store| Arc::new(store) as _))
}

fn gcs(address: &BucketAddress, options: &BucketOptions) -> Built {
    // The metadata service, which hands out tokens, has no https.
    let new = || {
        let client = options.client(None).with_allow_http(true);
        GoogleCloudStorageBuilder::new().with_client_options(client)
    };
    let mut builder = new();
    for (key, value) in options.known::<GoogleConfigKey>("GOOGLE_") {
        builder = builder.with_config(key, value);
    }
    if let Some(file) = &options.google_credentials {
        builder = builder.with_application_credentials(file.to_string_lossy());
    }
    if let Some(host) = options.variable("STORAGE_EMULATOR_HOST") {
        let url = match host.contains("://") {
            true => host.trim_end_matches('/').to_owned(),
            false => format!("http://{host}"),
        };
        // The one way to keep the library from asking for a token: an emulator wants none.
        let nobody = serde_json::json!({
            "gcs_base_url": url, "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "",
        });
        builder = new().with_service_account_key(nobody.to_string());
    }
    builder
        .with_bucket_name(&address.bucket)
        .with_http_connector(options.transport())
        .with_retry(options.retry())
        .build()
        .map(|store| Arc::new(store) as _)
}

fn azure(address: &BucketAddress, options: &BucketOptions) -> Result<Built, String> {
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(options.client(None));
    let mut settings: BTreeMap<&str, String> = BTreeMap::new();
    if let Some(text) = options.variable("AZURE_STORAGE_CONNECTION_STRING") {
        settings = connection_string(text)?;
    }
    // Azure's own tools have these names.
    for (name, setting) in [
        ("AZURE_STORAGE_ACCOUNT", "account_name"),
        ("AZURE_STORAGE_KEY", "account_key"),
    ] {
        if let Some(value) = options.variable(name) {
            settings.insert(setting, value.to_owned());
        }
    }
    let emulated = options.variable("AZURE_STORAGE_USE_EMULATOR");
    if emulated
        .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on"))
    {
        settings.extend(emulator(options.variable("AZURITE_BLOB_STORAGE_URL")));
    }
    for (setting, value) in &settings {
        if let Ok(key) = setting.parse::<AzureConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in options.known::<AzureConfigKey>("AZURE_") {
        // The library would read the emulator's address from the process.
        if key != AzureConfigKey::UseEmulator {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(account) = &address.account {
        builder = builder.with_account(account);
    }
    if builder.get_config_value(&AzureConfigKey::AccountName).is_none() {
        return Err("which storage account? Set AZURE_STORAGE_ACCOUNT_NAME, or write \
             abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX"
            .to_owned());
    }
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    let builder = builder
        .with_container_name(&address.bucket)
        .with_http_connector(options.transport())
        .with_retry(options.retry());
    Ok(builder.build().map(|store| Arc::new(store) as _))
}

fn emulator(url: Option<&str>) -> BTreeMap<&'static str, String> {
    let url = url.unwrap_or("http://127.0.0.1:10000").trim_end_matches('/');
    [
        ("account_name", EMULATOR_ACCOUNT.to_owned()),
        ("account_key", EMULATOR_KEY.to_owned()),
        ("endpoint", format!("{url}/{EMULATOR_ACCOUNT}")),
    ]
    .into()
}

/// The settings in `AccountName=…;AccountKey=…;…`
/// (<https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string>).
fn connection_string(text: &str) -> Result<BTreeMap<&'static str, String>, String> {
    let mut settings = BTreeMap::new();
    let (mut suffix, mut protocol) = ("core.windows.net", "https");
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        // Neither the part nor its value is repeated: it may be the key.
        let Some((name, value)) = part.split_once('=') else {
            return Err("AZURE_STORAGE_CONNECTION_STRING is not made of NAME=VALUE parts".to_owned());
        };
        match name {
            "AccountName" => settings.insert("account_name", value.to_owned()),
            "AccountKey" => settings.insert("account_key", value.to_owned()),
            "SharedAccessSignature" => settings.insert("sas_token", value.to_owned()),
            "BlobEndpoint" => settings.insert("endpoint", value.trim_end_matches('/').to_owned()),
            "UseDevelopmentStorage" if value == "true" => {
                settings.extend(emulator(None));
                None
            }
            "EndpointSuffix" => {
                suffix = value;
                None
            }
            "DefaultEndpointsProtocol" => {
                protocol = value;
                None
            }
            _ => None,
        };
    }
    if let (Some(account), None) = (settings.get("account_name"), settings.get("endpoint")) {
        let endpoint = format!("{protocol}://{account}.blob.{suffix}");
        settings.insert("endpoint", endpoint);
    }
    // An endpoint of the account's own says which account it is.
    if let (None, Some(endpoint)) = (settings.get("account_name"), settings.get("endpoint")) {
        let host = endpoint.split_once("://").map_or("", |(_, host)| host);
        let account = host.split('.').next().unwrap_or_default().to_owned();
        settings.insert("account_name", account);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    fn with(variables: &[(&str, &str)]) -> BucketOptions {
        BucketOptions {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..BucketOptions::default()
        }
    }

    fn try_connect(address: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let super::super::Address::Bucket(address) = address.parse().unwrap() else {
            panic!("{address} is a folder");
        };
        connect(&address, &with(variables))
            .map(|store| store.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn connection_strings_are_understood_and_not_repeated() {
        let settings = connection_string(
            "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=aGlkZGVu==;EndpointSuffix=core.windows.net",
        )
        .unwrap();
        assert_eq!(settings["account_name"], "shop");
        assert_eq!(settings["account_key"], "aGlkZGVu==");
        assert_eq!(settings["endpoint"], "https://shop.blob.core.windows.net");
        let settings = connection_string(
            "BlobEndpoint=https://shop.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=x",
        )
        .unwrap();
        assert_eq!(settings["sas_token"], "sv=1&sig=x");
        assert_eq!(settings["account_name"], "shop");
        let settings = connection_string("UseDevelopmentStorage=true").unwrap();
        assert_eq!(settings["endpoint"], "http://127.0.0.1:10000/devstoreaccount1");
        let error = try_connect("az://shop", &[("AZURE_STORAGE_CONNECTION_STRING", "aGlkZGVu")]).unwrap_err();
        assert!(
            error.contains("NAME=VALUE") && !error.contains("aGlkZGVu"),
            "{error}"
        );
    }

    #[test]
    fn what_the_environment_lacks_is_named() {
        let error = try_connect("az://shop/x", &[]).unwrap_err();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
        let error =
            try_connect("s3://shop", &[("AWS_ACCESS_KEY_ID", "id"), ("HOME", "/nowhere")]).unwrap_err();
        assert!(
            error.contains("SecretAccessKey") || error.contains("secret"),
            "{error}"
        );
        let error = try_connect(
            "gs://shop",
            &[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")],
        )
        .unwrap_err();
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
