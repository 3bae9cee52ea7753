//! The canonical MessagePack form of a document's fields.
