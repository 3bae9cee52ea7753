//! What a document of a shop costs on its way between protobuf and the canonical form.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up should stop")]

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use firebank::document::{DocumentBatch, DocumentPath, canonical, typed_json, wire};
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use prost::Message;

const ROOT: &str = "projects/shop/databases/(default)/documents";

/// A product, about 0.9 KB in every form.
const PRODUCT: &str = r#"{
  "name": "Wireless noise-cancelling headphones, over-ear, black", "sku": "WH-1000XM5-B-EU", "price": 349.99,
  "currency": "EUR", "in_stock": true, "quantity": 137, "category": {"$reference": "categories/audio"},
  "tags": ["audio", "bluetooth", "travel", "bestseller"], "discontinued": null,
  "created_at": {"$timestamp": "2025-06-29T12:00:00.123456Z"}, "updated_at": {"$timestamp": "2025-06-30T12:00:00Z"},
  "description": "Thirty hours of battery life, quick charge, multipoint pairing and touch controls. Folds flat into the case that comes with it. Works with a cable too, and with voice assistants of every make there is today.",
  "dimensions": {"width": 18.5, "height": 20.25, "depth": 7.75, "unit": "cm"},
  "supplier": {"name": "Müller Elektronik GmbH", "email": "orders@mueller.example", "rating": 4.7,
    "location": {"$geopoint": {"latitude": 52.520008, "longitude": 13.404954}}},
  "ratings": {"average": 4.6, "count": 1289, "histogram": [12, 31, 88, 310, 848]}
}"#;

fn main() {
    divan::main();
}

fn path() -> DocumentPath {
    DocumentPath::parse("products/WH-1000XM5-B-EU").unwrap()
}

fn body() -> Vec<u8> {
    canonical::encode(&typed_json::fields_from_str(PRODUCT).unwrap())
}

/// The message with its fields in order.
fn sorted_message() -> Vec<u8> {
    let mut wire = Vec::new();
    wire::append_document_message(&path(), &body(), ROOT, &mut wire).unwrap();
    wire
}

/// The message with its fields in the order of a hash map.
fn shuffled_message() -> Vec<u8> {
    pb::Document::decode(&sorted_message()[..])
        .unwrap()
        .encode_to_vec()
}

fn read(bencher: Bencher<'_, '_>, message: &[u8]) {
    let mut batch = DocumentBatch::new();
    bencher
        .counter(BytesCount::of_slice(message))
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| {
            if batch.len() == 1000 {
                batch.clear();
            }
            wire::append_document(black_box(message), ROOT, &mut batch)
        });
}

#[divan::bench]
fn wire_to_canonical_sorted(bencher: Bencher<'_, '_>) {
    read(bencher, &sorted_message());
}

#[divan::bench]
fn wire_to_canonical_shuffled(bencher: Bencher<'_, '_>) {
    read(bencher, &shuffled_message());
}

#[divan::bench]
fn wire_to_prost(bencher: Bencher<'_, '_>) {
    let message = shuffled_message();
    bencher
        .counter(BytesCount::of_slice(&message))
        .bench_local(|| pb::Document::decode(black_box(&message[..])));
}

#[divan::bench]
fn canonical_to_wire(bencher: Bencher<'_, '_>) {
    let (path, body) = (path(), body());
    let mut out = Vec::new();
    bencher.counter(BytesCount::of_slice(&body)).bench_local(|| {
        out.clear();
        wire::append_document_message(&path, black_box(&body), ROOT, &mut out)
    });
}

#[divan::bench]
fn validate(bencher: Bencher<'_, '_>) {
    let body = body();
    bencher
        .counter(BytesCount::of_slice(&body))
        .bench_local(|| canonical::validate(black_box(&body)));
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let body = body();
    bencher
        .counter(BytesCount::of_slice(&body))
        .bench_local(|| canonical::decode(black_box(&body)));
}

#[divan::bench]
fn canonical_to_json(bencher: Bencher<'_, '_>) {
    let body = body();
    let mut out = Vec::new();
    bencher.counter(BytesCount::of_slice(&body)).bench_local(|| {
        out.clear();
        serde_json::to_writer(&mut out, &typed_json::FieldsJson::new(black_box(&body)))
    });
}

#[divan::bench]
fn json_to_fields(bencher: Bencher<'_, '_>) {
    bencher
        .counter(BytesCount::of_str(PRODUCT))
        .bench_local(|| typed_json::fields_from_str(black_box(PRODUCT)));
}
