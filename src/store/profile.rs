//! The files in which Amazon's tools keep credentials, as far as they hold them.
//!
//! The client library knows only environment variables and what a machine is told about itself. A person at a
//! desk has `~/.aws/credentials` and `~/.aws/config`
//! (<https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>). Keys that stand there are used; a
//! profile that says how to get keys (single sign-on, another role, a helper program) is refused with the
//! command that gets them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use object_store::aws::AmazonS3ConfigKey as Key;

/// What a profile says.
#[derive(Default)]
pub(super) struct Profile {
    keys: Option<(String, String)>,
    token: Option<String>,
    region: Option<String>,
    pub(super) endpoint: Option<String>,
}

impl Profile {
    /// The profile that `AWS_PROFILE` names, or the default one. Empty where the variables hold keys or there
    /// are no files.
    pub(super) fn find(variables: &BTreeMap<String, String>) -> Result<Self, String> {
        let named = variables.get("AWS_PROFILE").map(String::as_str);
        let read = |variable: &str, usual: &str| {
            let file = variables.get(variable).map(PathBuf::from).or_else(|| {
                let home = variables.get(if cfg!(windows) { "USERPROFILE" } else { "HOME" })?;
                Some(PathBuf::from(home).join(".aws").join(usual))
            });
            file.and_then(|file| std::fs::read_to_string(file).ok())
                .unwrap_or_default()
        };
        let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = read("AWS_CONFIG_FILE", "config");
        let name = named.unwrap_or("default");
        let has_keys = variables.contains_key("AWS_ACCESS_KEY_ID");
        Self::parse(name, &credentials, &config, has_keys, named.is_some())
    }

    fn parse(
        name: &str,
        credentials: &str,
        config: &str,
        has_keys: bool,
        named: bool,
    ) -> Result<Self, String> {
        let section = match name {
            "default" => "default".to_owned(),
            name => format!("profile {name}"),
        };
        let mut settings = values(config, &section);
        let in_config = !settings.is_empty();
        let in_credentials = values(credentials, name);
        let found = in_config || !in_credentials.is_empty();
        settings.extend(in_credentials);
        if named && !found && !has_keys {
            return Err(format!(
                "AWS_PROFILE names the profile `{name}`, which is not in ~/.aws"
            ));
        }
        let mut take = |key: &str| settings.remove(key);
        let profile = Self {
            region: take("region"),
            endpoint: take("endpoint_url"),
            ..Self::default()
        };
        if has_keys {
            return Ok(profile);
        }
        let keys = take("aws_access_key_id").zip(take("aws_secret_access_key"));
        let token = take("aws_session_token");
        let indirect = [
            "sso_session",
            "sso_start_url",
            "role_arn",
            "credential_process",
            "login_session",
        ];
        if keys.is_none() && named && indirect.iter().any(|key| settings.contains_key(key)) {
            return Err(format!(
                "the profile `{name}` holds no keys but says how to get some: run \
                 `eval \"$(aws configure export-credentials --profile {name} --format env)\"` first"
            ));
        }
        Ok(Self {
            keys,
            token,
            ..profile
        })
    }

    /// For the client library.
    pub(super) fn settings(&self) -> Vec<(Key, &str)> {
        let mut settings = Vec::new();
        if let Some((id, secret)) = &self.keys {
            settings.push((Key::AccessKeyId, id.as_str()));
            settings.push((Key::SecretAccessKey, secret));
        }
        for (key, value) in [
            (Key::Token, &self.token),
            (Key::Region, &self.region),
            (Key::Endpoint, &self.endpoint),
        ] {
            settings.extend(value.as_deref().map(|value| (key, value)));
        }
        settings
    }
}

/// The settings of a section. Those nested below another begin with white space and are not wanted.
fn values<'a>(text: &'a str, section: &str) -> BTreeMap<&'a str, String> {
    let mut values = BTreeMap::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(header) = line.trim().strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default();
            inside = header.split_whitespace().eq(section.split_whitespace());
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            values.insert(key.trim(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    const CREDENTIALS: &str = "# a comment\n[default]\naws_access_key_id = ONE\naws_secret_access_key=first = x\n\n\
                               [work]\naws_access_key_id=TWO\naws_secret_access_key=second\naws_session_token=t\n";
    const CONFIG: &str = "[default]\nregion = eu-central-1\ns3 =\n  region = nested\n[profile work]\nregion=us-west-2\n\
                          [profile login]\nsso_session = x\nregion=us-east-1\n";

    fn parse(name: &str, has_keys: bool, named: bool) -> Result<Vec<(Key, String)>, String> {
        let profile = Profile::parse(name, CREDENTIALS, CONFIG, has_keys, named)?;
        let settings = profile.settings().into_iter();
        Ok(settings.map(|(key, value)| (key, value.to_owned())).collect())
    }

    #[test]
    fn keys_and_region_come_from_the_files() {
        let default = parse("default", false, false).unwrap();
        let expected = [
            (Key::AccessKeyId, "ONE"),
            (Key::SecretAccessKey, "first = x"),
            (Key::Region, "eu-central-1"),
        ];
        assert_eq!(default, expected.map(|(key, value)| (key, value.to_owned())));
        let work = parse("work", false, true).unwrap();
        assert!(work.contains(&(Key::Token, "t".to_owned())));
        assert!(work.contains(&(Key::Region, "us-west-2".to_owned())));
        // Keys in the environment leave nothing of the profile's.
        assert_eq!(
            parse("work", true, true).unwrap(),
            [(Key::Region, "us-west-2".to_owned())]
        );
    }

    #[test]
    fn a_profile_without_keys_says_how_to_get_them() {
        let error = parse("login", false, true).unwrap_err();
        assert!(error.contains("export-credentials --profile login"), "{error}");
        let error = parse("nobody", false, true).unwrap_err();
        assert!(error.contains("not in ~/.aws"), "{error}");
        assert_eq!(parse("nobody", false, false).unwrap(), []);
    }
}
