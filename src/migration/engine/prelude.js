// What a script finds: the classes of Firestore's values, and the `db` that its functions are given.
//
// An expression: a function that takes the host's calls and returns what the engine needs. All checks of arguments that are
// about JavaScript are here; what is about Firestore is the host's. A document that was read is held by a handle, a function
// of the host that nobody else can call.
(function (host) {
  "use strict";

  const KIND = Symbol.for("firebank.kind");
  const CONTENT = Symbol.for("firebank.content");
  const define = (prototype, kind, content) => {
    Object.defineProperty(prototype, KIND, { value: kind });
    if (content) Object.defineProperty(prototype, CONTENT, { get: content });
  };

  class AssertionError extends Error {
    get name() { return "AssertionError"; }
  }

  const shown = (value) => {
    if (typeof value === "string") return JSON.stringify(value);
    if (typeof value === "function") return "a function";
    if (Array.isArray(value)) return "an array";
    if (typeof value === "object" && value !== null) return `an object of class ${value.constructor?.name ?? "?"}`;
    return String(value);
  };
  const refuse = (what, value) => { throw new TypeError(`${what}, not ${shown(value)}`); };
  const expect = (holds, what, value) => {
    if (!holds) refuse(what, value);
  };
  // Every document comes by these: a message is made where one is needed.
  const text = (value, what) => {
    if (typeof value !== "string" || value === "") refuse(`${what} must be a text`, value);
  };
  const object = (value, what) => {
    if (typeof value !== "object" || value === null || Array.isArray(value) || value[KIND] !== undefined) refuse(`${what} must be an object`, value);
  };
  const finite = (value, what) => {
    if (typeof value !== "number" || !Number.isFinite(value)) refuse(`${what} must be a number`, value);
  };

  // ---- values ----

  class Timestamp {
    constructor(seconds, nanoseconds = 0) {
      expect(Number.isSafeInteger(seconds), "a Timestamp's seconds must be a whole number", seconds);
      expect(Number.isInteger(nanoseconds) && nanoseconds >= 0 && nanoseconds < 1e9,
        "a Timestamp's nanoseconds must be a whole number from 0 to 999999999", nanoseconds);
      this.seconds = seconds;
      this.nanoseconds = nanoseconds;
      Object.freeze(this);
    }
    static fromMillis(milliseconds) {
      finite(milliseconds, "Timestamp.fromMillis: the time");
      const seconds = Math.floor(milliseconds / 1000);
      return new Timestamp(seconds, Math.floor((milliseconds - seconds * 1000) * 1e6));
    }
    static fromDate(date) { return Timestamp.fromMillis(date.getTime()); }
    static now() { return Timestamp.fromMillis(Date.now()); }
    toMillis() { return this.seconds * 1000 + Math.floor(this.nanoseconds / 1e6); }
    toDate() { return new Date(this.toMillis()); }
    isEqual(other) {
      return other instanceof Timestamp && other.seconds === this.seconds && other.nanoseconds === this.nanoseconds;
    }
    // Texts that order as the times do, so that < and > work.
    valueOf() {
      const seconds = (this.seconds + 62135596800).toString().padStart(12, "0");
      return `${seconds}.${this.nanoseconds.toString().padStart(9, "0")}`;
    }
    toString() { return `Timestamp(${this.seconds}, ${this.nanoseconds})`; }
    toJSON() { return { seconds: this.seconds, nanoseconds: this.nanoseconds }; }
  }
  define(Timestamp.prototype, 1);

  class GeoPoint {
    constructor(latitude, longitude) {
      expect(typeof latitude === "number", "a GeoPoint's latitude must be a number", latitude);
      expect(typeof longitude === "number", "a GeoPoint's longitude must be a number", longitude);
      this.latitude = latitude;
      this.longitude = longitude;
      Object.freeze(this);
    }
    isEqual(other) {
      return other instanceof GeoPoint && other.latitude === this.latitude && other.longitude === this.longitude;
    }
    toString() { return `GeoPoint(${this.latitude}, ${this.longitude})`; }
  }
  define(GeoPoint.prototype, 2);

  class DocumentReference {
    constructor(path) {
      text(path, "a DocumentReference's path");
      this.path = path;
      Object.freeze(this);
    }
    get id() { return this.path.slice(this.path.lastIndexOf("/") + 1); }
    get collection() { return this.path.slice(0, this.path.lastIndexOf("/")); }
    isEqual(other) { return other instanceof DocumentReference && other.path === this.path; }
    toString() { return this.path; }
  }
  define(DocumentReference.prototype, 3);

  const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

  // Held as a text of one character a byte: that takes a byte each in this engine, and goes over to the host whole.
  class Bytes {
    #binary;
    constructor(binary) {
      expect(typeof binary === "string" && !/[^\x00-\xff]/.test(binary), "Bytes are made by Bytes.fromUint8Array or Bytes.fromBase64String", binary);
      this.#binary = binary;
    }
    static fromUint8Array(array) {
      expect(array instanceof Uint8Array, "Bytes.fromUint8Array takes a Uint8Array", array);
      let binary = "";
      for (let at = 0; at < array.length; at += 4096) {
        binary += String.fromCharCode.apply(null, array.subarray(at, at + 4096));
      }
      return new Bytes(binary);
    }
    static fromBase64String(base64) {
      expect(typeof base64 === "string" && /^[A-Za-z0-9+/]*={0,2}$/.test(base64), "Bytes.fromBase64String takes base 64", base64);
      const bytes = [];
      let bits = 0, held = 0;
      for (const letter of base64.replace(/=+$/, "")) {
        held = ((held << 6) | BASE64.indexOf(letter)) & 0xffff;
        bits += 6;
        if (bits >= 8) {
          bits -= 8;
          bytes.push((held >> bits) & 0xff);
        }
      }
      return Bytes.fromUint8Array(new Uint8Array(bytes));
    }
    get length() { return this.#binary.length; }
    toUint8Array() { return Uint8Array.from(this.#binary, (letter) => letter.charCodeAt(0)); }
    toBase64() {
      let base64 = "";
      const bytes = this.toUint8Array();
      for (let at = 0; at < bytes.length; at += 3) {
        const three = (bytes[at] << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
        base64 += BASE64[three >> 18] + BASE64[(three >> 12) & 63]
          + (at + 1 < bytes.length ? BASE64[(three >> 6) & 63] : "=")
          + (at + 2 < bytes.length ? BASE64[three & 63] : "=");
      }
      return base64;
    }
    isEqual(other) { return other instanceof Bytes && other.#binary === this.#binary; }
    toString() { return `Bytes(${this.toBase64()})`; }
    get [CONTENT]() { return this.#binary; }
  }
  define(Bytes.prototype, 4);

  class Vector {
    #values;
    constructor(values) {
      expect(Array.isArray(values) && values.every((value) => typeof value === "number"), "a Vector takes an array of numbers", values);
      this.#values = Object.freeze(values.slice());
    }
    toArray() { return this.#values.slice(); }
    get length() { return this.#values.length; }
    isEqual(other) {
      return other instanceof Vector && other.length === this.length && this.#values.every((value, at) => Object.is(value, other.#values[at]));
    }
    toString() { return `Vector(${this.#values})`; }
    get [CONTENT]() { return this.#values; }
  }
  define(Vector.prototype, 5);

  // `Double(1)` and `new Double(1)` alike: a double, also where an integer is stored or nothing.
  function Double(value) {
    if (!new.target) return new Double(value);
    expect(typeof value === "number", "Double takes a number", value);
    this.value = value;
    Object.freeze(this);
  }
  Double.prototype.valueOf = function () { return this.value; };
  define(Double.prototype, 6);

  class FieldValue {
    #content;
    constructor(token, ...content) {
      expect(token === KIND, "a FieldValue is made by FieldValue.increment(1) and the like", token);
      this.#content = content;
    }
    static serverTimestamp() { return new FieldValue(KIND, "serverTimestamp"); }
    static delete() { return new FieldValue(KIND, "delete"); }
    static increment(by) {
      expect(typeof by === "number" || typeof by === "bigint" || by instanceof Double, "FieldValue.increment takes a number", by);
      return new FieldValue(KIND, "increment", by);
    }
    static arrayUnion(...elements) { return new FieldValue(KIND, "arrayUnion", elements); }
    static arrayRemove(...elements) { return new FieldValue(KIND, "arrayRemove", elements); }
    get [CONTENT]() { return this.#content; }
  }
  define(FieldValue.prototype, 7);

  // What the host makes values of when it reads a document.
  const make = {
    timestamp: (seconds, nanoseconds) => new Timestamp(seconds, nanoseconds),
    geoPoint: (latitude, longitude) => new GeoPoint(latitude, longitude),
    reference: (path) => new DocumentReference(path),
    bytes: (binary) => new Bytes(binary),
    vector: (values) => new Vector(values),
  };

  // ---- documents ----

  const site = () => new Error().stack;

  class Document {
    #handle;
    #data;
    #times;
    constructor(path, handle) {
      this.path = path;
      this.#handle = handle;
    }
    get id() { return this.path.slice(this.path.lastIndexOf("/") + 1); }
    get collection() { return this.path.slice(0, this.path.lastIndexOf("/")); }
    get ref() { return new DocumentReference(this.path); }
    get data() { return (this.#data ??= host.data(this.#handle, make)); }
    get createTime() { return (this.#times ??= host.times(this.#handle, make))[0]; }
    get updateTime() { return (this.#times ??= host.times(this.#handle, make))[1]; }
    update(changes) {
      object(changes, "doc.update: the changes");
      host.update(this.path, changes, this.#handle, site());
    }
    set(data, options) {
      object(data, "doc.set: the data");
      host.set(this.path, data, merging(options), this.#handle, site());
    }
    delete() { host.delete(this.path, this.#handle, site()); }
    // What transform does with what its function returns; whether that changes anything.
    static replace(doc, data, rerun, at) { return host.replace(doc.path, data, doc.#handle, rerun, at); }
    // A function gets its own copy to work upon, so that a document that is held keeps what was read.
    static fresh(doc) { return host.data(doc.#handle, make); }
    toString() { return this.path; }
  }

  const merging = (options) => {
    if (options === undefined) return false;
    object(options, "set: the options");
    for (const key of Object.keys(options)) expect(key === "merge", "set knows the option `merge` only", key);
    return options.merge === true;
  };

  const OPTIONS = ["where", "orderBy", "limit", "group"];

  const query = (collection, options, group, call) => {
    text(collection, `${call}: the collection`);
    const query = { collection, group, where: [], orderBy: [], limit: undefined };
    if (options === undefined) return query;
    object(options, `${call}: the options`);
    for (const key of Object.keys(options)) expect(OPTIONS.includes(key), `${call} knows the options ${OPTIONS.join(", ")}`, key);
    const { where = [], orderBy = [], limit } = options;
    expect(Array.isArray(where), `${call}: \`where\` must be an array of [field, operator, value]`, where);
    // One condition may stand by itself.
    query.where = where.length > 0 && typeof where[0] === "string" ? [where] : where;
    for (const condition of query.where) {
      expect(Array.isArray(condition) && condition.length === 3 && typeof condition[0] === "string" && typeof condition[1] === "string",
        `${call}: a condition is [field, operator, value]`, condition);
    }
    const orders = typeof orderBy === "string" ? [orderBy] : orderBy;
    expect(Array.isArray(orders), `${call}: \`orderBy\` must be a field or an array of fields and [field, "desc"]`, orders);
    const single = orders.length === 2 && (orders[1] === "desc" || orders[1] === "asc") ? [orders] : orders;
    query.orderBy = single.map((order) => {
      const [field, direction = "asc"] = Array.isArray(order) ? order : [order];
      text(field, `${call}: a field to order by`);
      expect(direction === "asc" || direction === "desc", `${call}: the direction must be "asc" or "desc"`, direction);
      return [field, direction === "desc"];
    });
    if (limit !== undefined) {
      expect(Number.isSafeInteger(limit) && limit > 0, `${call}: the limit must be a whole number above 0`, limit);
      query.limit = limit;
    }
    query.group = group || options.group === true;
    return query;
  };

  // What is asked of a collection must see what functions make of it, also where they have to run again.
  const ready = (query) => {
    if (functions.length > 0 && host.ready(query)) settle();
    return query;
  };

  function* scan(query) {
    const scan = host.open(ready(query));
    try {
      for (;;) {
        const found = host.next(scan);
        if (found === null) return;
        yield new Document(found[0], found[1]);
      }
    } finally {
      host.close(scan);
    }
  }

  // ---- functions that must run again, because somebody else changed a document after they had seen it ----

  const functions = [];
  const rerun = (conflicts) => {
    for (const [number, path] of conflicts) {
      const found = host.get(path);
      if (found === null) continue;
      functions[number](new Document(path, found));
    }
  };
  const settle = () => {
    for (let round = 0; round < 100; round += 1) {
      const conflicts = host.flush();
      if (conflicts.length === 0) return;
      rerun(conflicts);
    }
    throw new Error("somebody else changes documents all the time that are being transformed");
  };

  const joined = (parts) =>
    parts.map((part) => {
      if (typeof part === "string") return part;
      if (part instanceof Error) return part.stack ? `${part}\n${part.stack}` : String(part);
      if (typeof part === "bigint" || typeof part === "function" || typeof part === "symbol" || part === undefined) return String(part);
      if (typeof part === "object" && part !== null && part[KIND] !== undefined) return String(part);
      try {
        return JSON.stringify(part, (_, value) => (typeof value === "bigint" ? `${value}n` : value)) ?? String(part);
      } catch {
        return String(part);
      }
    }).join(" ");
  const logger = (level) => (...parts) => host.log(level, joined(parts));

  class Database {
    get dryRun() { return host.dryRun; }
    get settings() { return host.settings; }
    get project() { return host.project; }

    get(path) {
      text(path, "db.get: the path");
      const found = host.get(path);
      return found === null ? null : new Document(path, found);
    }
    create(path, data) {
      text(path, "db.create: the path");
      object(data, "db.create: the data");
      return host.create(path, data, site());
    }
    set(path, data, options) {
      text(path, "db.set: the path");
      object(data, "db.set: the data");
      host.set(path, data, merging(options), undefined, site());
    }
    update(path, changes) {
      text(path, "db.update: the path");
      object(changes, "db.update: the changes");
      host.update(path, changes, undefined, site());
    }
    delete(path) {
      text(path, "db.delete: the path");
      host.delete(path, undefined, site());
    }

    documents(collection, options) { return scan(query(collection, options, false, "db.documents")); }
    collectionGroup(collection, options) { return scan(query(collection, options, true, "db.collectionGroup")); }
    count(collection, options) { return host.count(ready(query(collection, options, false, "db.count"))); }

    addField(collection, field, value, options) {
      text(field, "db.addField: the field");
      const what = query(collection, options, false, "db.addField");
      if (typeof value !== "function") return host.addField(ready(what), field, value, site());
      // A default that depends on the document.
      const keys = host.fieldPath(field);
      return this.transform(collection, (data, doc) => (has(data, keys) ? undefined : put(data, keys, value(doc.data, doc))), options);
    }
    renameField(collection, from, to, options) {
      text(from, "db.renameField: the field");
      text(to, "db.renameField: the new name");
      return host.renameField(ready(query(collection, options, false, "db.renameField")), from, to, site());
    }
    removeField(collection, field, options) {
      text(field, "db.removeField: the field");
      return host.removeField(ready(query(collection, options, false, "db.removeField")), field, site());
    }
    transform(collection, change, options) {
      expect(typeof change === "function", "db.transform: the second argument must be a function", change);
      const at = site();
      const number = functions.length;
      const apply = (doc) => {
        const data = change(Document.fresh(doc), doc);
        if (data === undefined) return false;
        if (typeof data?.then === "function") throw new TypeError("db.transform: the function must not be async");
        object(data, "db.transform: what the function returns");
        return Document.replace(doc, data, number, at);
      };
      functions.push(apply);
      let count = 0;
      for (const doc of scan(query(collection, options, false, "db.transform"))) if (apply(doc)) count += 1;
      return count;
    }

    createCollection(collection, schema = {}) {
      text(collection, "db.createCollection: the collection");
      object(schema, "db.createCollection: the schema");
      return host.create(`${collection}/_schema`, schema, site());
    }
    copyCollection(from, to) { return copy(from, to, false, "db.copyCollection"); }
    moveCollection(from, to) { return copy(from, to, true, "db.moveCollection"); }
    deleteCollection(collection) {
      text(collection, "db.deleteCollection: the collection");
      if (functions.length > 0) settle();
      return host.deleteCollection(collection, site());
    }

    assert(holds, message = "an assertion failed") {
      if (!holds) throw new AssertionError(joined([message]));
    }
    assertEqual(found, expected, message = "not equal") {
      if (!equal(found, expected)) throw new AssertionError(`${message}: ${joined([found])} instead of ${joined([expected])}`);
    }
    assertExists(path) {
      const doc = this.get(path);
      if (doc === null) throw new AssertionError(`there is no document ${path}`);
      return doc;
    }
    assertMissing(path) {
      if (this.get(path) !== null) throw new AssertionError(`there is a document ${path}`);
    }
    assertNotEmpty(...collections) {
      for (const collection of collections.flat()) {
        let empty = true;
        for (const _ of this.documents(collection, { limit: 1 })) empty = false;
        if (empty) throw new AssertionError(`collection ${collection} is empty`);
      }
    }
    assertEvery(collection, holds, options) {
      expect(typeof holds === "function", "db.assertEvery: the second argument must be a function", holds);
      let count = 0;
      for (const doc of scan(query(collection, options, false, "db.assertEvery"))) {
        if (!holds(doc.data, doc)) throw new AssertionError(`${doc.path} does not hold what it must`);
        count += 1;
      }
      return count;
    }

    log(...parts) { host.log("info", joined(parts)); }
    debug(...parts) { host.log("debug", joined(parts)); }
    warn(...parts) { host.log("warn", joined(parts)); }
    error(...parts) { host.log("error", joined(parts)); }
  }

  const copy = (from, to, move, call) => {
    text(from, `${call}: the collection`);
    text(to, `${call}: the new collection`);
    if (functions.length > 0) settle();
    return host.copyCollection(from, to, move, site());
  };

  const plain = (value) => typeof value === "object" && value !== null && !Array.isArray(value) && value[KIND] === undefined;
  const has = (data, keys) => keys.every((key) => plain(data) && Object.hasOwn(data, key) && ((data = data[key]), true));
  const put = (data, [key, ...rest], value) => {
    if (rest.length > 0) value = put(Object.hasOwn(data, key) && plain(data[key]) ? data[key] : {}, rest, value);
    // Defined and not assigned: a key may be `__proto__`.
    return Object.defineProperty(data, key, { value, writable: true, enumerable: true, configurable: true });
  };

  const equal = (a, b) => {
    if (Object.is(a, b)) return true;
    if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
    if (typeof a.isEqual === "function") return a.isEqual(b);
    if (Array.isArray(a) !== Array.isArray(b)) return false;
    const keys = Object.keys(a);
    return keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && equal(a[key], b[key]));
  };

  Object.assign(globalThis, {
    Timestamp, GeoPoint, DocumentReference, Bytes, Vector, Double, FieldValue,
    console: Object.freeze({
      log: logger("info"), info: logger("info"), debug: logger("debug"), warn: logger("warn"), error: logger("error"),
    }),
  });
  return { database: Object.freeze(new Database()), settle };
})
