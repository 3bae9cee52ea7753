//! Where access tokens come from.
//!
//! Three ways in: an emulator's fixed word, the application default credentials, a key file. Every failure
//! says what to do, because this is the first thing that goes wrong for anybody; none of them repeats what a
//! key file holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::firestore::gcloud_sdk::GoogleAuthHeaders;
use ::firestore::gcloud_sdk::google_cloud_auth::credentials::{external_account, impersonated, user_account};

use super::{Error, Result};

/// Who a connection to production acts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// The environment's own: `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's login, or the metadata server
    /// (<https://cloud.google.com/docs/authentication/application-default-credentials>).
    ApplicationDefault,
    /// A JSON file: a service account's key, or what gcloud and workload identity federation write.
    KeyFile(PathBuf),
}

/// What Firestore asks for.
const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/datastore"];

/// The metadata server is asked last and never answers on a laptop.
const FIRST_TOKEN_WAIT: Duration = Duration::from_secs(30);

const LOG_IN: &str = "log in with `gcloud auth application-default login`, or name a service account's key file with --credentials";
const NAME_A_KEY: &str = "name a service account's key file, as the console's IAM page or `gcloud iam service-accounts keys \
                          create` writes it";

/// Makes the token cache, and fills it, so that what is wrong shows now and not in the middle of a backup.
pub(super) async fn token_cache(credentials: &Credentials) -> Result<Arc<GoogleAuthHeaders>> {
    let headers =
        match credentials {
            Credentials::ApplicationDefault => GoogleAuthHeaders::from_adc_with_scopes(scopes())
                .await
                .map_err(|source| Error::Credentials {
                    problem: "there are no usable application default credentials".to_owned(),
                    remedy: LOG_IN,
                    source: Some(Box::new(source)),
                })?,
            Credentials::KeyFile(path) => from_key_file(path).await?,
        };
    match tokio::time::timeout(FIRST_TOKEN_WAIT, headers.headers()).await {
        Ok(Ok(_)) => Ok(Arc::new(headers)),
        Ok(Err(source)) => Err(Error::Credentials {
            problem: match credentials {
                Credentials::ApplicationDefault => {
                    "the application default credentials give no access token".to_owned()
                }
                Credentials::KeyFile(path) => {
                    format!("the key file {} gives no access token", path.display())
                }
            },
            remedy: LOG_IN,
            source: Some(Box::new(source)),
        }),
        Err(_) => Err(Error::Credentials {
            problem: format!("no access token came within {} s", FIRST_TOKEN_WAIT.as_secs()),
            remedy: "check that this machine reaches oauth2.googleapis.com, or, outside Google Cloud, name a key file \
                     with --credentials",
            source: None,
        }),
    }
}

fn scopes() -> Vec<String> {
    SCOPES.iter().map(|&scope| scope.to_owned()).collect()
}

async fn from_key_file(path: &Path) -> Result<GoogleAuthHeaders> {
    let shown = path.display();
    let refuse =
        |problem: String, source: Option<Box<dyn std::error::Error + Send + Sync>>| Error::Credentials {
            problem,
            remedy: NAME_A_KEY,
            source,
        };
    let text = tokio::fs::read(path).await.map_err(|source| {
        refuse(
            format!("cannot read the key file {shown}"),
            Some(Box::new(source)),
        )
    })?;
    // The parser's own message says where, never what: it does not repeat the text.
    let key: serde_json::Value = serde_json::from_slice(&text).map_err(|source| {
        refuse(
            format!("the key file {shown} is not JSON"),
            Some(Box::new(source)),
        )
    })?;
    let missing = |name: &str| {
        key.get(name)
            .and_then(|value| value.as_str())
            .is_none_or(str::is_empty)
    };
    let built = match key.get("type").and_then(|kind| kind.as_str()) {
        Some("service_account") => {
            if let Some(name) = ["client_email", "private_key"]
                .into_iter()
                .find(|name| missing(name))
            {
                return Err(refuse(format!("the key file {shown} has no `{name}`"), None));
            }
            return GoogleAuthHeaders::from_service_account_key(key, scopes())
                .await
                .map_err(|source| {
                    refuse(
                        format!("the key file {shown} is not usable"),
                        Some(Box::new(source)),
                    )
                });
        }
        Some("authorized_user") => user_account::Builder::new(key).with_scopes(SCOPES).build(),
        Some("external_account") => external_account::Builder::new(key).with_scopes(SCOPES).build(),
        Some("impersonated_service_account") => impersonated::Builder::new(key).with_scopes(SCOPES).build(),
        _ => {
            return Err(refuse(
                format!("the file {shown} holds no credentials of a known type"),
                None,
            ));
        }
    };
    built.map(GoogleAuthHeaders::from).map_err(|source| {
        refuse(
            format!("the credentials in {shown} are not usable"),
            Some(Box::new(source)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn message_for(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = token_cache(&Credentials::KeyFile(file.path().to_owned()))
            .await
            .unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error:?}");
        error.to_string()
    }

    #[tokio::test]
    async fn unusable_key_files_say_what_to_do() {
        let missing = token_cache(&Credentials::KeyFile("/nonexistent/key.json".into()))
            .await
            .unwrap_err();
        let message = missing.to_string();
        assert!(
            message.contains("/nonexistent/key.json")
                && message.contains("name a service account's key file"),
            "{message}"
        );
        assert!(message_for("SECRET").await.contains("is not JSON"));
        assert!(
            message_for(r#"{"type": "web", "x": "SECRET"}"#)
                .await
                .contains("no credentials of a known type")
        );
        let half = r#"{"type": "service_account", "private_key": "SECRET"}"#;
        assert!(message_for(half).await.contains("has no `client_email`"));
        let nonsense = r#"{"type": "service_account", "client_email": "a@b", "private_key_id": "1", "private_key": "SECRET",
            "token_uri": "http://127.0.0.1:1/"}"#;
        assert!(message_for(nonsense).await.contains("key file"));
    }
}
