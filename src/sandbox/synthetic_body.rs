//! The bodies of synthetic documents: varied records of a shop, with values of every common type.

use std::sync::LazyLock;

use ::firestore::gcloud_sdk::google::firestore::v1::{Value, value::ValueType};
use ::firestore::gcloud_sdk::google::r#type::LatLng;
use ::firestore::gcloud_sdk::prost_types::Timestamp;
use bytes::BufMut;
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::codec::put_bytes_field;
use super::synthetic::put_entry;

/// The encoded fields of a document, and where values of fixed width are to be replaced.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) fields: Vec<u8>,
    /// Sixteen hexadecimal digits.
    token: usize,
    /// A double.
    price: usize,
}

impl Body {
    /// Appends the fields with the values that `random` makes. `token` stands before `price`.
    pub(crate) fn put(&self, random: u64, out: &mut impl BufMut) {
        let mut token = [0; 16];
        for (index, digit) in token.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(random >> (index * 4)) as usize & 15];
        }
        let price = (random % 100_000) as f64 / 100.0;
        out.put_slice(&self.fields[..self.token]);
        out.put_slice(&token);
        out.put_slice(&self.fields[self.token + 16..self.price]);
        out.put_slice(&price.to_le_bytes());
        out.put_slice(&self.fields[self.price + 8..]);
    }
}

/// What texts are made of, separated by spaces.
const WORDS: &str = "\
    about above active advance alpine amber anchor apple arrow autumn basket battery beacon blanket blue \
    bottle branch bright bronze brush button cable camera candle canvas carbon castle cedar ceramic \
    chair charger circle classic clock cloud coast coffee compact copper cotton cover crystal curve \
    cushion delivery desert desk digital double dragon dream durable early earth edge electric ember \
    engine evening fabric falcon family feather fiber field filter flame flexible folding forest frame \
    fresh garden gentle glass golden granite green guard hammer handmade harbor harvest heavy helmet \
    hidden hollow honey horizon hybrid indigo island ivory jacket jasmine kettle keyboard kitchen \
    lantern large leather lemon light linen little lunar magnet maple marble meadow metal midnight \
    minimal mirror modern monitor morning mountain narrow natural needle nickel north notebook ocean \
    olive orange orbit organic outdoor oxygen paper pearl pepper pilot pine planet pocket polished \
    portable premium purple quartz quick quiet rapid raven recycled ribbon river rocket round rubber \
    saddle salt satin scarlet shadow sharp shelf signal silent silver simple slate smart smooth solar \
    solid spark spice spring square stable steel stone storm summer table tactile thermal thunder timber \
    titan travel tundra turbo ultra urban valley velvet vintage violet walnut water wild willow winter \
    wireless wooden yellow zephyr für café größe naïve 日本 модель";
const CITIES: &[&str] = &[
    "Amsterdam",
    "Berlin",
    "Chicago",
    "Dublin",
    "Firenze",
    "Göteborg",
    "Kyoto",
    "Lisboa",
    "Zürich",
];
const STATES: &[&str] = &["new", "paid", "packed", "shipped", "delivered", "returned"];

/// Values are put together encoded, because a map's fields would be encoded in any order, and the same seed
/// must give the same bytes.
type Encoded = Vec<u8>;

fn value(value: ValueType) -> Encoded {
    Value {
        value_type: Some(value),
    }
    .encode_to_vec()
}

fn text(text: impl Into<String>) -> Encoded {
    value(ValueType::StringValue(text.into()))
}

fn words(random: &mut StdRng, count: usize) -> String {
    static LIST: LazyLock<Vec<&str>> = LazyLock::new(|| WORDS.split(' ').collect());
    let mut text = String::with_capacity(count * 8);
    for number in 0..count {
        if number > 0 {
            text.push(' ');
        }
        // Common words are more common: the smaller of two.
        let index = random
            .random_range(0..LIST.len())
            .min(random.random_range(0..LIST.len()));
        text.push_str(LIST[index]);
    }
    text
}

fn time(random: &mut StdRng) -> Encoded {
    value(ValueType::TimestampValue(Timestamp {
        seconds: random.random_range(1_600_000_000..1_750_000_000),
        nanos: random.random_range(0..1_000_000) * 1000,
    }))
}

fn id(random: &mut StdRng) -> String {
    (0..20)
        .map(|_| random.sample(rand::distr::Alphanumeric) as char)
        .collect()
}

fn integer(random: &mut StdRng, below: i64) -> Encoded {
    value(ValueType::IntegerValue(random.random_range(0..below)))
}

fn double(random: &mut StdRng, below: f64) -> Encoded {
    value(ValueType::DoubleValue(
        (random.random_range(0.0..below) * 100.0).round() / 100.0,
    ))
}

fn map(fields: &[(&str, Encoded)]) -> Encoded {
    let mut entries = Vec::new();
    for (name, value) in fields {
        let mut entry = Vec::with_capacity(name.len() + value.len() + 8);
        put_bytes_field(1, name.as_bytes(), &mut entry);
        put_bytes_field(2, value, &mut entry);
        put_bytes_field(1, &entry, &mut entries);
    }
    let mut out = Vec::with_capacity(entries.len() + 4);
    put_bytes_field(6, &entries, &mut out);
    out
}

fn array(values: &[Encoded]) -> Encoded {
    let mut elements = Vec::new();
    values
        .iter()
        .for_each(|value| put_bytes_field(1, value, &mut elements));
    let mut out = Vec::with_capacity(elements.len() + 4);
    put_bytes_field(9, &elements, &mut out);
    out
}

fn address(random: &mut StdRng) -> Encoded {
    let street = format!("{} {}", words(random, 2), random.random_range(1..200));
    map(&[
        ("street", text(street)),
        ("city", text(CITIES[random.random_range(0..CITIES.len())])),
        (
            "postal_code",
            text(format!("{:05}", random.random_range(1000..99999))),
        ),
    ])
}

fn item(random: &mut StdRng) -> Encoded {
    map(&[
        ("sku", text(id(random))),
        ("count", integer(random, 20)),
        ("price", double(random, 500.0)),
    ])
}

/// Makes a body of about `target` bytes.
pub(crate) fn make_body(seed: u64, target: usize, root: &str) -> Body {
    let mut random = StdRng::seed_from_u64(seed);
    let random = &mut random;
    let mut fields = Vec::with_capacity(target + 256);
    let put = |fields: &mut Vec<u8>, name: &str, value: Encoded| put_entry(name, &value, fields);
    put(&mut fields, "name", text(words(random, 3)));
    let token = put(&mut fields, "etag", text("0123456789abcdef")) + 3;
    put(&mut fields, "quantity", integer(random, 1000));
    let price = put(&mut fields, "price", value(ValueType::DoubleValue(1.5))) + 1;
    put(
        &mut fields,
        "available",
        value(ValueType::BooleanValue(random.random_bool(0.8))),
    );
    put(&mut fields, "updated_at", time(random));
    let mut number = 0;
    while fields.len() + 60 < target {
        let room = target - fields.len();
        match number {
            0 => put(
                &mut fields,
                "status",
                text(STATES[random.random_range(0..STATES.len())]),
            ),
            1 => {
                let count = random.random_range(1..5);
                let tags: Vec<_> = (0..count).map(|_| text(words(random, 1))).collect();
                put(&mut fields, "tags", array(&tags))
            }
            2 => put(&mut fields, "created_at", time(random)),
            3 => put(&mut fields, "customer", text(id(random))),
            4 => put(&mut fields, "rating", double(random, 5.0)),
            5 => put(&mut fields, "address", address(random)),
            6 => {
                let place = LatLng {
                    latitude: random.random_range(-60.0..60.0),
                    longitude: random.random_range(-180.0..180.0),
                };
                put(&mut fields, "location", value(ValueType::GeoPointValue(place)))
            }
            7 => {
                let reference = format!("{root}/categories/{}", words(random, 1));
                put(
                    &mut fields,
                    "category",
                    value(ValueType::ReferenceValue(reference)),
                )
            }
            8 => put(&mut fields, "deleted_at", value(ValueType::NullValue(0))),
            9 => {
                let count = (room / 400).clamp(1, 8);
                let items: Vec<_> = (0..count).map(|_| item(random)).collect();
                put(&mut fields, "items", array(&items))
            }
            10 => {
                let bytes: Vec<u8> = (0..16).map(|_| random.random()).collect();
                put(&mut fields, "checksum", value(ValueType::BytesValue(bytes)))
            }
            _ => {
                let name = if number == 11 {
                    "description".to_owned()
                } else {
                    format!("note_{number}")
                };
                let count = (room / 8).clamp(4, 160);
                put(&mut fields, &name, text(words(random, count)))
            }
        };
        number += 1;
    }
    Body { fields, token, price }
}
