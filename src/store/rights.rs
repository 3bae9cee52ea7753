//! What a bucket's owner grants for each kind of request, by the service's own names: error messages say
//! which is missing.

use super::Provider;

/// The right that `operation`, as [`StoreError`](super::StoreError) words it, needs from a service.
pub(super) fn right_to(provider: Provider, operation: &str) -> &'static str {
    match (provider, operation) {
        (Provider::S3, "create" | "write") => "s3:PutObject",
        (Provider::S3, "list") => "s3:ListBucket on the bucket",
        (Provider::S3, "delete") => "s3:DeleteObject",
        (Provider::S3, _) => {
            "s3:GetObject (and s3:ListBucket, without which S3 refuses instead of saying that there is no such object)"
        }
        (Provider::Gcs, "create") => "storage.objects.create",
        (Provider::Gcs, "write") => "storage.objects.create and storage.objects.delete",
        (Provider::Gcs, "list") => "storage.objects.list",
        (Provider::Gcs, "delete") => "storage.objects.delete",
        (Provider::Gcs, _) => "storage.objects.get",
        (Provider::Azure, "create") => "blobs/add/action or blobs/write (in a SAS: c or w)",
        (Provider::Azure, "write") => "blobs/write (in a SAS: w)",
        (Provider::Azure, "list") => "blobs/read (in a SAS: l)",
        (Provider::Azure, "delete") => "blobs/delete (in a SAS: d)",
        (Provider::Azure, _) => "blobs/read (in a SAS: r)",
    }
}

/// How credentials are given.
pub(super) fn how_to_authenticate(provider: Provider) -> &'static str {
    match provider {
        Provider::S3 => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached"
        }
        Provider::Gcs => {
            "give --credentials FILE, set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
        }
        Provider::Azure => {
            "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, or \
             AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, or AZURE_USE_AZURE_CLI=true after `az login`"
        }
    }
}

/// What says where the service is.
pub(super) fn endpoint_variables(provider: Provider) -> &'static str {
    match provider {
        Provider::S3 => "AWS_ENDPOINT_URL and AWS_REGION",
        Provider::Gcs => "STORAGE_EMULATOR_HOST",
        Provider::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
    }
}
