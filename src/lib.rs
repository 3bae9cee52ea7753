//! Firebank: streaming backup, restore and migration for Google Cloud Firestore.

pub mod archive;
pub mod clock;
pub mod document;
pub mod firestore;
pub mod json;
pub mod sandbox;
pub mod store;
