//! Asking the server what time it is: a snapshot is of a moment by the server's clock, never by the local one.

use ::firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, BatchGetDocumentsResponse, RunQueryResponse,
};
use ::firestore::gcloud_sdk::prost_types;

use super::by_name::{kindless_refused, query_by_name, query_request};
use super::cursor::NameRange;
use super::proto::timestamp;
use super::{Error, Firestore, Method, Result};
use crate::document::Timestamp;

impl Firestore {
    /// A time that the database can be read at, by the server's clock: later than every write that was
    /// acknowledged before the call.
    pub async fn current_read_time(&self) -> Result<Timestamp> {
        if !self.walks() {
            let query = query_by_name(&self.inner.root, None, &NameRange::default(), None);
            let request = query_request(&self.inner.root, query, true, 1, None);
            let asked = self.ask_stream(Method::RunQuery, None, &request).await;
            let answers: Vec<RunQueryResponse> = match asked.map_err(kindless_refused) {
                Err(Error::KindlessRefused { source }) => {
                    self.walk_from_now_on(&source);
                    return self.read_time_of_a_name().await;
                }
                asked => asked?,
            };
            self.inner.stats.billed(1);
            let time = answers.iter().find_map(|answer| answer.read_time.as_ref());
            return read_time(Method::RunQuery, time);
        }
        self.read_time_of_a_name().await
    }

    /// The same, asked with a name that nobody has.
    async fn read_time_of_a_name(&self) -> Result<Timestamp> {
        let request = BatchGetDocumentsRequest {
            database: self.inner.database.resource(),
            documents: vec![format!("{}/{}", self.inner.root, self.nonexistent())],
            ..Default::default()
        };
        let method = Method::BatchGetDocuments;
        let answers: Vec<BatchGetDocumentsResponse> = self.ask_stream(method, None, &request).await?;
        self.inner.stats.billed(1);
        read_time(
            method,
            answers.iter().find_map(|answer| answer.read_time.as_ref()),
        )
    }
}

fn read_time(method: Method, time: Option<&prost_types::Timestamp>) -> Result<Timestamp> {
    time.map(timestamp)
        .ok_or_else(|| Error::malformed(method, "no read time came with it"))
}
