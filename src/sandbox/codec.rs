//! The codec of every call: requests with their size, answers that are encoded already.
//!
//! A benchmark must measure Firebank and not the server, so a stored document goes out by one copy into the
//! connection's buffer, and a synthetic one is put together there.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost::encoding::{encode_key, encode_varint, encoded_len_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::synthetic::Synthetic;

/// A request and how many bytes it took.
#[derive(Debug)]
pub(crate) struct Received<T> {
    pub(crate) message: T,
    pub(crate) bytes: usize,
}

/// One message of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The whole message.
    Message(Bytes),
    /// A stored document, which becomes field 1, and the fields after it.
    Document { document: Bytes, tail: Bytes },
    /// A synthetic document, which becomes field 1, and the fields after it.
    Synthetic {
        source: Arc<Synthetic>,
        index: u64,
        names_only: bool,
        tail: Bytes,
    },
}

impl Answer {
    /// The answer that consists of `message`.
    pub(crate) fn of(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec().into())
    }

    /// Bytes on the wire, without gRPC's frame.
    pub(crate) fn len(&self) -> usize {
        let (document, tail) = match self {
            Self::Message(bytes) => return bytes.len(),
            Self::Document { document, tail } => (document.len(), tail),
            Self::Synthetic {
                source,
                index,
                names_only,
                tail,
            } => (source.message_len(*index, *names_only), tail),
        };
        1 + encoded_len_varint(document as u64) + document + tail.len()
    }

    /// Appends fields to the message of a document.
    pub(crate) fn extend_tail(&mut self, fields: &[u8]) {
        if let Self::Document { tail, .. } | Self::Synthetic { tail, .. } = self {
            *tail = [&tail[..], fields].concat().into();
        }
    }

    /// Whether it carries a document.
    pub(crate) fn is_document(&self) -> bool {
        !matches!(self, Self::Message(_))
    }

    /// Whether it is billed as a read: a document, or (in BatchGetDocuments, as field 2) that there is none.
    pub(crate) fn is_billed(&self) -> bool {
        match self {
            Self::Message(bytes) => bytes.first() == Some(&0x12),
            _ => true,
        }
    }

    fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Message(bytes) => out.put_slice(bytes),
            Self::Document { document, tail } => {
                put_bytes_field(1, document, out);
                out.put_slice(tail);
            }
            Self::Synthetic {
                source,
                index,
                names_only,
                tail,
            } => {
                encode_key(1, prost::encoding::WireType::LengthDelimited, out);
                encode_varint(source.message_len(*index, *names_only) as u64, out);
                source.put_message(*index, *names_only, out);
                out.put_slice(tail);
            }
        }
    }
}

/// Appends a length-delimited field.
pub(crate) fn put_bytes_field(tag: u32, bytes: &[u8], out: &mut impl BufMut) {
    encode_key(tag, prost::encoding::WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

/// The codec: see the module's documentation.
#[derive(Debug)]
pub(crate) struct Codec<T>(PhantomData<T>);

impl<T> Default for Codec<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Default + 'static> tonic::codec::Codec for Codec<T> {
    type Encode = Answer;
    type Decode = Received<T>;
    type Encoder = AnswerEncoder;
    type Decoder = RequestDecoder<T>;

    fn encoder(&mut self) -> Self::Encoder {
        AnswerEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder(PhantomData)
    }
}

/// Writes answers.
#[derive(Debug)]
pub(crate) struct AnswerEncoder;

impl Encoder for AnswerEncoder {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(answer.len());
        answer.encode(out);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(32 << 10, 64 << 10)
    }
}

/// Reads requests.
#[derive(Debug)]
pub(crate) struct RequestDecoder<T>(PhantomData<T>);

impl<T: Message + Default + 'static> Decoder for RequestDecoder<T> {
    type Item = Received<T>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Received<T>>, Status> {
        let bytes = buffer.remaining();
        let message = T::decode(buffer)
            .map_err(|error| Status::internal(format!("cannot read the request: {error}")))?;
        Ok(Some(Received { message, bytes }))
    }
}
