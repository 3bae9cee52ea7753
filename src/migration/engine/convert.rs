//! Values between JavaScript and Firestore, without loss.
//!
//! The way in goes from canonical bytes straight to objects. The way out makes [`Draft`]s, because what a number is depends on
//! what is stored. The classes of the prelude are told by a symbol on their prototypes, which no field of a document can be.

use std::collections::BTreeMap;

use rquickjs::object::Property;
use rquickjs::{Array, BigInt, Ctx, Exception, Function, Object, Symbol, Type, Value as Js};

use super::draft::{Draft, MAX_SAFE_INTEGER, Operation};
use crate::document::canonical::{MAX_DEPTH, Reader, ReferenceRef, Text, Token};
use crate::document::{DocumentPath, FieldPath, Fields, GeoPoint, Reference, Timestamp, Value};

/// The way in: an object with a document's fields. `make` has the prelude's functions that make values of classes.
pub(super) fn object_of<'js>(
    ctx: &Ctx<'js>,
    body: &[u8],
    make: &Object<'js>,
) -> rquickjs::Result<Object<'js>> {
    let unreadable = |_| Exception::throw_internal(ctx, "the document cannot be read");
    let (mut reader, count) = Reader::open(body).map_err(unreadable)?;
    let incoming = Incoming { ctx, make };
    incoming.entries(&mut reader, count, 1)
}

struct Incoming<'a, 'js> {
    ctx: &'a Ctx<'js>,
    make: &'a Object<'js>,
}

impl<'js> Incoming<'_, 'js> {
    fn broken(&self) -> rquickjs::Error {
        Exception::throw_internal(self.ctx, "the document cannot be read")
    }

    fn entries(&self, reader: &mut Reader<'_>, count: usize, depth: usize) -> rquickjs::Result<Object<'js>> {
        if depth > MAX_DEPTH {
            return Err(self.broken());
        }
        let object = Object::new(self.ctx.clone())?;
        let mut previous: Option<Text<'_>> = None;
        for _ in 0..count {
            let key = reader.key(previous).map_err(|_| self.broken())?;
            let name = key.to_str().map_err(|_| self.broken())?;
            let value = self.value(reader, depth)?;
            if name == "__proto__" {
                // Set like others, it would become the object's prototype and not a field.
                object.prop(name, Property::from(value).writable().enumerable().configurable())?;
            } else {
                object.set(name, value)?;
            }
            previous = Some(key);
        }
        Ok(object)
    }

    fn value(&self, reader: &mut Reader<'_>, depth: usize) -> rquickjs::Result<Js<'js>> {
        let ctx = || self.ctx.clone();
        let make = |name: &str| self.make.get::<_, Function<'js>>(name);
        Ok(match reader.token().map_err(|_| self.broken())? {
            Token::Null => Js::new_null(ctx()),
            Token::Boolean(value) => Js::new_bool(ctx(), value),
            Token::Integer(value) => match i32::try_from(value) {
                Ok(small) => Js::new_int(ctx(), small),
                Err(_) if value.unsigned_abs() <= MAX_SAFE_INTEGER as u64 => {
                    Js::new_float(ctx(), value as f64)
                }
                Err(_) => BigInt::from_i64(ctx(), value)?.into_value(),
            },
            // Not `new_number`, which makes 0 of -0.
            Token::Double(bits) => Js::new_float(ctx(), f64::from_bits(bits)),
            Token::String(text) => {
                let text = text.to_str().map_err(|_| self.broken())?;
                rquickjs::String::from_str(ctx(), text)?.into_value()
            }
            Token::Timestamp(time) => make("timestamp")?.call((time.seconds as f64, time.nanos))?,
            Token::Bytes(bytes) => {
                let binary: String = bytes.iter().map(|&byte| char::from(byte)).collect();
                make("bytes")?.call((binary,))?
            }
            Token::Reference(ReferenceRef::Relative(path)) => make("reference")?.call((path,))?,
            Token::Reference(ReferenceRef::Absolute(name)) => make("reference")?.call((name,))?,
            Token::GeoPoint(latitude, longitude) => {
                let (latitude, longitude) = (f64::from_bits(latitude), f64::from_bits(longitude));
                make("geoPoint")?.call((latitude, longitude))?
            }
            Token::Array(count) => {
                if depth >= MAX_DEPTH {
                    return Err(self.broken());
                }
                let array = Array::new(ctx())?;
                for index in 0..count {
                    array.set(index, self.value(reader, depth + 1)?)?;
                }
                array.into_value()
            }
            Token::Map(count) => match vector(*reader, count) {
                Some((values, after)) => {
                    *reader = after;
                    make("vector")?.call((values,))?
                }
                None => self.entries(reader, count, depth + 1)?.into_value(),
            },
        })
    }
}

const VECTOR_TYPE: &str = "__type__";
const VECTOR: &str = "__vector__";
const VECTOR_VALUE: &str = "value";

/// The numbers of a map that is a vector and nothing else, and the reader behind it.
fn vector(mut reader: Reader<'_>, count: usize) -> Option<(Vec<f64>, Reader<'_>)> {
    if count != 2 {
        return None;
    }
    let kind = reader.key(None).ok()?;
    let Ok(Token::String(text)) = reader.token() else {
        return None;
    };
    let value = reader.key(Some(kind)).ok()?;
    if kind.as_bytes() != VECTOR_TYPE.as_bytes()
        || text.as_bytes() != VECTOR.as_bytes()
        || value.as_bytes() != VECTOR_VALUE.as_bytes()
    {
        return None;
    }
    let Ok(Token::Array(length)) = reader.token() else {
        return None;
    };
    let mut values = Vec::with_capacity(length.min(4096));
    for _ in 0..length {
        match reader.token() {
            Ok(Token::Double(bits)) => values.push(f64::from_bits(bits)),
            _ => return None,
        }
    }
    Some((values, reader))
}

/// The way out: what a script gave as a document's fields. Anything that Firestore cannot hold is thrown as a TypeError.
pub(super) fn drafts_of<'js>(
    ctx: &Ctx<'js>,
    object: &Object<'js>,
    root: &str,
) -> rquickjs::Result<BTreeMap<String, Draft>> {
    let outgoing = Outgoing::new(ctx, root)?;
    outgoing.map(object, 1).map_err(|problem| problem.thrown(ctx))
}

/// The same for a single value.
pub(super) fn draft_of<'js>(ctx: &Ctx<'js>, value: Js<'js>, root: &str) -> rquickjs::Result<Draft> {
    let outgoing = Outgoing::new(ctx, root)?;
    outgoing.value(value, 1).map_err(|problem| problem.thrown(ctx))
}

/// Why something is no value.
enum Problem {
    /// Where, and why.
    NoValue(FieldPath, String),
    /// JavaScript has thrown.
    Thrown(rquickjs::Error),
}

impl From<rquickjs::Error> for Problem {
    fn from(error: rquickjs::Error) -> Self {
        Self::Thrown(error)
    }
}

impl Problem {
    fn new(why: impl Into<String>) -> Self {
        Self::NoValue(FieldPath::root(), why.into())
    }

    fn under_key(mut self, key: &str) -> Self {
        if let Self::NoValue(path, _) = &mut self {
            path.push_key(key);
        }
        self
    }

    fn under_index(mut self, index: usize) -> Self {
        if let Self::NoValue(path, _) = &mut self {
            path.push_index(index);
        }
        self
    }

    fn thrown(self, ctx: &Ctx<'_>) -> rquickjs::Error {
        match self {
            Self::NoValue(path, why) if path.is_root() => Exception::throw_type(ctx, &why),
            Self::NoValue(path, why) => Exception::throw_type(ctx, &format!("{why} (at {path})")),
            Self::Thrown(error) => error,
        }
    }
}

struct Outgoing<'a, 'js> {
    /// The database's document root.
    root: &'a str,
    kind: Symbol<'js>,
    content: Symbol<'js>,
}

impl<'a, 'js> Outgoing<'a, 'js> {
    fn new(ctx: &Ctx<'js>, root: &'a str) -> rquickjs::Result<Self> {
        Ok(Self {
            root,
            kind: Symbol::new_global(ctx.clone(), "firebank.kind")?,
            content: Symbol::new_global(ctx.clone(), "firebank.content")?,
        })
    }

    fn map(&self, object: &Object<'js>, depth: usize) -> Result<BTreeMap<String, Draft>, Problem> {
        let entries = object.own_props::<rquickjs::String<'js>, Js<'js>>(rquickjs::object::Filter::default());
        let drafts = entries.map(|entry| {
            let (key, value) = entry?;
            let key = text(&key)?;
            match self.value(value, depth) {
                Ok(draft) => Ok((key, draft)),
                Err(problem) => Err(problem.under_key(&key)),
            }
        });
        drafts.collect()
    }

    fn value(&self, value: Js<'js>, depth: usize) -> Result<Draft, Problem> {
        if depth > MAX_DEPTH {
            return Err(Problem::new(format!(
                "values nest deeper than {MAX_DEPTH} levels, or hold themselves"
            )));
        }
        let plain = match value.type_of() {
            Type::Null => Value::Null,
            Type::Bool => Value::Boolean(value.as_bool().unwrap_or_default()),
            Type::Int | Type::Float => return Ok(Draft::Number(value.as_number().unwrap_or(f64::NAN))),
            Type::BigInt => Value::Integer(big_integer(&value)?),
            Type::String => match value.as_string() {
                Some(string) => Value::String(text(string)?),
                None => return Err(Problem::new("a text cannot be read")),
            },
            Type::Array => return self.array(value, depth),
            Type::Undefined | Type::Uninitialized => {
                return Err(Problem::new(
                    "undefined is no value: leave the field away, or write null or FieldValue.delete()",
                ));
            }
            Type::Function | Type::Constructor => return Err(Problem::new("a function is no value")),
            Type::Symbol => return Err(Problem::new("a symbol is no value")),
            Type::Promise => {
                return Err(Problem::new(
                    "a promise is no value: calls are synchronous here, nothing needs to be awaited",
                ));
            }
            _ => match value.as_object() {
                Some(object) => return self.object(object, depth),
                None => return Err(Problem::new(format!("{} is no value", value.type_name()))),
            },
        };
        Ok(Draft::Value(plain))
    }

    fn array(&self, value: Js<'js>, depth: usize) -> Result<Draft, Problem> {
        let Some(array) = value.as_array() else {
            return Err(Problem::new("an array cannot be read"));
        };
        let mut drafts = Vec::with_capacity(array.len().min(1024));
        for index in 0..array.len() {
            let element: Js<'js> = array.get(index)?;
            if element.is_array() {
                return Err(
                    Problem::new("Firestore has no arrays in arrays: put a map between them")
                        .under_index(index),
                );
            }
            let draft = self.value(element, depth + 1);
            drafts.push(draft.map_err(|problem| problem.under_index(index))?);
        }
        Ok(Draft::Array(drafts))
    }

    fn object(&self, object: &Object<'js>, depth: usize) -> Result<Draft, Problem> {
        let kind: Option<u32> = object.get(self.kind.clone())?;
        match kind {
            Some(kind) => self.instance(kind, object, depth),
            None if is_plain(object) => Ok(Draft::Map(self.map(object, depth + 1)?)),
            None => self.foreign(object),
        }
    }

    /// An instance of one of the prelude's classes.
    fn instance(&self, kind: u32, object: &Object<'js>, depth: usize) -> Result<Draft, Problem> {
        let content = || object.get::<_, Js<'js>>(self.content.clone());
        let value = match kind {
            1 => {
                let seconds: f64 = object.get("seconds")?;
                Value::Timestamp(Timestamp::new(seconds as i64, object.get("nanoseconds")?))
            }
            2 => Value::GeoPoint(GeoPoint {
                latitude: object.get("latitude")?,
                longitude: object.get("longitude")?,
            }),
            3 => Value::Reference(self.reference(object.get("path")?)?),
            4 => match content()?.as_string() {
                // One character a byte.
                Some(binary) => Value::Bytes(text(binary)?.chars().map(|letter| letter as u8).collect()),
                None => return Err(Problem::new("these Bytes cannot be read")),
            },
            5 => {
                let values: Vec<f64> = content()?.get()?;
                let kind = (VECTOR_TYPE.to_owned(), Value::String(VECTOR.to_owned()));
                let values = Value::Array(values.into_iter().map(Value::Double).collect());
                Value::Map(Fields::from([kind, (VECTOR_VALUE.to_owned(), values)]))
            }
            6 => Value::Double(object.get("value")?),
            _ => return self.operation(&content()?, depth),
        };
        Ok(Draft::Value(value))
    }

    fn operation(&self, content: &Js<'js>, depth: usize) -> Result<Draft, Problem> {
        let Some(content) = content.as_array() else {
            return Err(Problem::new("this FieldValue cannot be read"));
        };
        let name: String = content.get(0)?;
        let operand = || content.get::<Js<'js>>(1);
        let elements = || match self.value(operand()?, depth)? {
            Draft::Array(drafts) => Ok(drafts),
            _ => Err(Problem::new("a FieldValue needs elements")),
        };
        Ok(Draft::Operation(match name.as_str() {
            "serverTimestamp" => Operation::ServerTimestamp,
            "delete" => Operation::Delete,
            "increment" => Operation::Increment(Box::new(self.value(operand()?, depth)?)),
            "arrayUnion" => Operation::ArrayUnion(elements()?),
            _ => Operation::ArrayRemove(elements()?),
        }))
    }

    fn reference(&self, path: String) -> Result<Reference, Problem> {
        let below_root = path
            .strip_prefix(self.root)
            .and_then(|path| path.strip_prefix('/'));
        let relative = match below_root {
            Some(path) => path,
            None if path.starts_with("projects/") && path.contains("/databases/") => {
                return Ok(Reference::Absolute(path));
            }
            None => &path,
        };
        DocumentPath::parse(relative)
            .map(Reference::Relative)
            .map_err(|error| Problem::new(error.to_string()))
    }

    /// JavaScript's own classes that stand for a value.
    fn foreign(&self, object: &Object<'js>) -> Result<Draft, Problem> {
        if let Ok(time) = object.get::<_, Function<'js>>("getTime") {
            let milliseconds: f64 = time.call((rquickjs::prelude::This(object.clone()),))?;
            if !milliseconds.is_finite() {
                return Err(Problem::new("an invalid Date is no value"));
            }
            let milliseconds = milliseconds as i64;
            let nanos = milliseconds.rem_euclid(1000) as u32 * 1_000_000;
            let time = Timestamp::new(milliseconds.div_euclid(1000), nanos);
            return Ok(Draft::Value(Value::Timestamp(time)));
        }
        if object.as_typed_array::<u8>().is_some() {
            let length: usize = object.get("length")?;
            let bytes = (0..length).map(|index| object.get::<_, u8>(index as u32));
            return Ok(Draft::Value(Value::Bytes(bytes.collect::<Result<_, _>>()?)));
        }
        let class = object
            .get::<_, Object<'js>>("constructor")
            .and_then(|constructor| constructor.get::<_, String>("name"));
        Err(Problem::new(format!(
            "an object of class {} is no value",
            class.unwrap_or_else(|_| "?".to_owned())
        )))
    }
}

/// Whether the prototype is none, or one that has none itself: `Object.prototype`.
fn is_plain(object: &Object<'_>) -> bool {
    object
        .get_prototype()
        .is_none_or(|prototype| prototype.get_prototype().is_none())
}

fn text(string: &rquickjs::String<'_>) -> Result<String, Problem> {
    string.to_string().map_err(|_| {
        Problem::new("a text has half a character (a lone surrogate), which Firestore's UTF-8 cannot hold")
    })
}

/// The engine's own conversion wraps around silently, so this goes by the decimal text.
fn big_integer(value: &Js<'_>) -> Result<i64, Problem> {
    let text: rquickjs::Coerced<String> = value.get()?;
    text.0.parse().map_err(|_| {
        Problem::new(format!(
            "{}n is beyond the 64 bits of Firestore's integers",
            text.0
        ))
    })
}
