//! The protobuf form of a document: `google.firestore.v1.Document`, to and from canonical MessagePack.
