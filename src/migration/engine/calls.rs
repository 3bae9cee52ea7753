//! The host's calls as functions of an object that only the prelude has.

use std::collections::BTreeMap;
use std::rc::Rc;

use rquickjs::{Array, Ctx, Exception, Function, Object, Value as Js};

use super::bulk::Bulk;
use super::change::Change;
use super::draft::{Draft, Operation};
use super::field_path;
use super::host::{Host, collection_path};
use super::serve::Request;
use crate::document::{Timestamp, Value};
use crate::firestore::{NAME_FIELD, Query, QueryFilter, QueryOperator, QueryOrder};

/// What the prelude finds besides calls.
pub(super) struct Surroundings<'a> {
    pub(super) dry_run: bool,
    pub(super) settings: &'a BTreeMap<String, String>,
    pub(super) project: &'a str,
}

/// The object with the host's calls.
pub(super) fn host_object<'js>(
    ctx: &Ctx<'js>,
    host: &Rc<Host>,
    surroundings: &Surroundings<'_>,
) -> rquickjs::Result<Object<'js>> {
    let object = Object::new(ctx.clone())?;
    object.set("dryRun", surroundings.dry_run)?;
    object.set("project", surroundings.project)?;
    object.set("settings", settings(ctx, surroundings.settings)?)?;
    reads(ctx, host, &object)?;
    writes(ctx, host, &object)?;
    bulks(ctx, host, &object)?;
    Ok(object)
}

fn settings<'js>(ctx: &Ctx<'js>, settings: &BTreeMap<String, String>) -> rquickjs::Result<Object<'js>> {
    let object = Object::new(ctx.clone())?;
    for (key, value) in settings {
        object.set(key.as_str(), value.as_str())?;
    }
    let freeze: Function<'js> = ctx.globals().get::<_, Object<'js>>("Object")?.get("freeze")?;
    freeze.call((object,))
}

fn reads<'js>(ctx: &Ctx<'js>, host: &Rc<Host>, object: &Object<'js>) -> rquickjs::Result<()> {
    let function = |name: &str, function: Function<'js>| object.set(name, function);
    let at = host.clone();
    function(
        "data",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, handle: Function<'js>, make: Object<'js>| at.data(&ctx, &handle, &make),
        )?,
    )?;
    let at = host.clone();
    function(
        "times",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, handle: Function<'js>, make: Object<'js>| at.times(&ctx, &handle, &make),
        )?,
    )?;
    let at = host.clone();
    function(
        "get",
        Function::new(ctx.clone(), move |ctx: Ctx<'js>, path: String| {
            nullable(&ctx, at.get(&ctx, &path)?)
        })?,
    )?;
    let at = host.clone();
    function(
        "open",
        Function::new(ctx.clone(), move |ctx: Ctx<'js>, query: Object<'js>| {
            at.open_scan(&ctx, query_of(&ctx, &at, &query)?)
        })?,
    )?;
    let at = host.clone();
    function(
        "next",
        Function::new(ctx.clone(), move |ctx: Ctx<'js>, scan: u32| {
            let Some((path, handle)) = at.next(&ctx, scan)? else {
                return Ok(Js::new_null(ctx));
            };
            let pair = Array::new(ctx)?;
            pair.set(0, path)?;
            pair.set(1, handle)?;
            rquickjs::Result::Ok(pair.into_value())
        })?,
    )?;
    let at = host.clone();
    function(
        "close",
        Function::new(ctx.clone(), move |scan: u32| at.close_scan(scan))?,
    )?;
    let at = host.clone();
    function(
        "count",
        Function::new(ctx.clone(), move |ctx: Ctx<'js>, query: Object<'js>| {
            let query = query_of(&ctx, &at, &query)?;
            at.ask(&ctx, |reply| Request::Count(query, reply))
                .map(|count| count as f64)
        })?,
    )?;
    let at = host.clone();
    function(
        "ready",
        Function::new(ctx.clone(), move |ctx: Ctx<'js>, query: Object<'js>| {
            let query = query_of(&ctx, &at, &query)?;
            at.ask(&ctx, |reply| Request::Ready(query, reply))
        })?,
    )?;
    let at = host.clone();
    function(
        "log",
        Function::new(ctx.clone(), move |level: String, text: String| {
            at.log(&level, text)
        })?,
    )?;
    function(
        "fieldPath",
        Function::new(ctx.clone(), |ctx: Ctx<'js>, field: String| path_of(&ctx, &field))?,
    )
}

fn writes<'js>(ctx: &Ctx<'js>, host: &Rc<Host>, object: &Object<'js>) -> rquickjs::Result<()> {
    let function = |name: &str, function: Function<'js>| object.set(name, function);
    let at = host.clone();
    function(
        "create",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, path: String, data: Object<'js>, stack: String| {
                let path = match path.split('/').count() % 2 {
                    0 => path,
                    _ => format!("{path}/{}", random_id()),
                };
                let drafts = at.drafts(&ctx, &data)?;
                at.change(&ctx, &path, Change::Create(drafts), None, &stack)?;
                rquickjs::Result::Ok(path)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "set",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>,
                  path: String,
                  data: Object<'js>,
                  merge: bool,
                  handle: Js<'js>,
                  stack: String| {
                let drafts = at.drafts(&ctx, &data)?;
                let change = match merge {
                    true => Change::Merge(drafts),
                    false => Change::Set(drafts),
                };
                at.change(&ctx, &path, change, handle.as_function(), &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "update",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, path: String, data: Object<'js>, handle: Js<'js>, stack: String| {
                let mut changes = Vec::new();
                for (field, draft) in at.drafts(&ctx, &data)? {
                    changes.push((path_of(&ctx, &field)?, draft));
                }
                check_apart(&ctx, &changes)?;
                at.change(&ctx, &path, Change::Update(changes), handle.as_function(), &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "delete",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, path: String, handle: Js<'js>, stack: String| {
                at.change(&ctx, &path, Change::Delete, handle.as_function(), &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "replace",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>,
                  path: String,
                  data: Object<'js>,
                  handle: Function<'js>,
                  function: u32,
                  stack: String| { at.replace(&ctx, &path, &data, &handle, function, &stack) },
        )?,
    )?;
    let at = host.clone();
    function(
        "flush",
        Function::new(ctx.clone(), move |ctx: Ctx<'js>| {
            let rerun = at.ask(&ctx, Request::Flush)?;
            let pairs = Array::new(ctx.clone())?;
            for (index, (function, path)) in rerun.into_iter().enumerate() {
                let pair = Array::new(ctx.clone())?;
                pair.set(0, function)?;
                pair.set(1, String::from(path))?;
                pairs.set(index, pair)?;
            }
            rquickjs::Result::Ok(pairs)
        })?,
    )
}

fn bulks<'js>(ctx: &Ctx<'js>, host: &Rc<Host>, object: &Object<'js>) -> rquickjs::Result<()> {
    let function = |name: &str, function: Function<'js>| object.set(name, function);
    let at = host.clone();
    function(
        "addField",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, query: Object<'js>, field: String, value: Js<'js>, stack: String| {
                let draft = at.draft(&ctx, value)?;
                if draft == Draft::Operation(Operation::Delete) {
                    return Err(Exception::throw_type(
                        &ctx,
                        "a field cannot be added by FieldValue.delete()",
                    ));
                }
                let bulk = Bulk::AddField(query_of(&ctx, &at, &query)?, path_of(&ctx, &field)?, draft);
                step(&ctx, &at, bulk, &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "renameField",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, query: Object<'js>, from: String, to: String, stack: String| {
                let (from, to) = (path_of(&ctx, &from)?, path_of(&ctx, &to)?);
                if from.starts_with(&to) || to.starts_with(&from) {
                    return Err(Exception::throw_type(
                        &ctx,
                        "a field cannot take its own place, or one above or below it",
                    ));
                }
                let bulk = Bulk::RenameField(query_of(&ctx, &at, &query)?, from, to);
                step(&ctx, &at, bulk, &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "removeField",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, query: Object<'js>, field: String, stack: String| {
                let bulk = Bulk::RemoveField(query_of(&ctx, &at, &query)?, path_of(&ctx, &field)?);
                step(&ctx, &at, bulk, &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "copyCollection",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, from: String, to: String, moving: bool, stack: String| {
                let (from, to) = (collection_path(&ctx, &from)?, collection_path(&ctx, &to)?);
                let below = |a: &str, b: &str| {
                    a.strip_prefix(b)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                if below(to.as_str(), from.as_str()) || below(from.as_str(), to.as_str()) {
                    return Err(Exception::throw_type(
                        &ctx,
                        "a collection cannot be copied into itself, below itself or above itself",
                    ));
                }
                step(&ctx, &at, Bulk::Copy { from, to, moving }, &stack)
            },
        )?,
    )?;
    let at = host.clone();
    function(
        "deleteCollection",
        Function::new(
            ctx.clone(),
            move |ctx: Ctx<'js>, collection: String, stack: String| {
                let collection = collection_path(&ctx, &collection)?;
                step(&ctx, &at, Bulk::Delete(collection), &stack)
            },
        )?,
    )
}

fn step(ctx: &Ctx<'_>, host: &Host, bulk: Bulk, stack: &str) -> rquickjs::Result<f64> {
    host.check_write(ctx)?;
    let site = host.site(stack);
    host.ask(ctx, |reply| Request::Bulk(bulk, site, reply))
        .map(|count| count as f64)
}

fn nullable<'js>(ctx: &Ctx<'js>, function: Option<Function<'js>>) -> rquickjs::Result<Js<'js>> {
    Ok(match function {
        Some(function) => function.into_value(),
        None => Js::new_null(ctx.clone()),
    })
}

fn path_of(ctx: &Ctx<'_>, field: &str) -> rquickjs::Result<Vec<String>> {
    field_path::parse(field).map_err(|problem| Exception::throw_type(ctx, &problem))
}

/// Refuses changes of which one is within another: their order would decide.
fn check_apart(ctx: &Ctx<'_>, changes: &[(Vec<String>, Draft)]) -> rquickjs::Result<()> {
    let mut paths: Vec<&Vec<String>> = changes.iter().map(|(path, _)| path).collect();
    paths.sort_unstable();
    match paths.windows(2).find(|pair| pair[1].starts_with(pair[0])) {
        Some(pair) => Err(Exception::throw_type(
            ctx,
            &format!(
                "the changes name {} and {}, of which one is within the other",
                pair[0].join("."),
                pair[1].join(".")
            ),
        )),
        None => Ok(()),
    }
}

/// As Firestore's own clients make them: 20 letters and digits.
fn random_id() -> String {
    use rand::RngExt;
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..20)
        .map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]))
        .collect()
}

/// The query that the prelude has checked the outside of.
fn query_of<'js>(ctx: &Ctx<'js>, host: &Host, options: &Object<'js>) -> rquickjs::Result<Query> {
    let collection: String = options.get("collection")?;
    let mut query = match options.get::<_, bool>("group")? {
        true if collection.contains('/') => {
            return Err(Exception::throw_type(
                ctx,
                &format!("`{collection}` is no collection group: that is one name, without slashes"),
            ));
        }
        true => Query::group(&collection),
        false => Query::collection(&collection_path(ctx, &collection)?),
    };
    for condition in options.get::<_, Vec<Array<'js>>>("where")? {
        let (field, operator, value): (String, String, Js<'js>) =
            (condition.get(0)?, condition.get(1)?, condition.get(2)?);
        let value = host
            .draft(ctx, value)?
            .onto(None, Timestamp::default())
            .map_err(|error| Exception::throw_type(ctx, &error.to_string()))?;
        query.filters.push(QueryFilter {
            field: query_field(ctx, &field)?,
            operator: operator_of(ctx, &operator)?,
            value: value.unwrap_or(Value::Null),
        });
    }
    for order in options.get::<_, Vec<Array<'js>>>("orderBy")? {
        query.order.push(QueryOrder {
            field: query_field(ctx, &order.get::<String>(0)?)?,
            descending: order.get(1)?,
        });
    }
    query.limit = options.get::<_, Option<f64>>("limit")?.map(|limit| limit as u64);
    Ok(query)
}

fn query_field(ctx: &Ctx<'_>, field: &str) -> rquickjs::Result<Vec<String>> {
    match field {
        NAME_FIELD => Ok(vec![NAME_FIELD.to_owned()]),
        field => path_of(ctx, field),
    }
}

fn operator_of(ctx: &Ctx<'_>, operator: &str) -> rquickjs::Result<QueryOperator> {
    Ok(match operator {
        "<" => QueryOperator::LessThan,
        "<=" => QueryOperator::LessThanOrEqual,
        "==" => QueryOperator::Equal,
        "!=" => QueryOperator::NotEqual,
        ">=" => QueryOperator::GreaterThanOrEqual,
        ">" => QueryOperator::GreaterThan,
        "array-contains" => QueryOperator::ArrayContains,
        "array-contains-any" => QueryOperator::ArrayContainsAny,
        "in" => QueryOperator::In,
        "not-in" => QueryOperator::NotIn,
        other => {
            return Err(Exception::throw_type(
                ctx,
                &format!(
                    "`{other}` is no operator: there are < <= == != >= > array-contains array-contains-any in not-in"
                ),
            ));
        }
    })
}
