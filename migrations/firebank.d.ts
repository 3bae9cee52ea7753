// Type declarations for Firebank's migration scripts: completion and checks in an editor.
//
// With `// @ts-check` at its top and this line, a script is checked as it is written:
//
//     /** @param {firebank.Database} db */
//     export function migrate(db) { … }
//
// A script is an ES module of one file, run by an embedded engine: no imports, no files, no network, no timers. All calls are
// synchronous; nothing needs to be awaited.

export {};

declare global {
  /** A point in time, to the nanosecond; Firestore keeps microseconds. Compares with `<` and `>`. */
  class Timestamp {
    constructor(seconds: number, nanoseconds?: number);
    readonly seconds: number;
    readonly nanoseconds: number;
    /** This machine's time. `FieldValue.serverTimestamp()` is the database's. */
    static now(): Timestamp;
    static fromDate(date: Date): Timestamp;
    static fromMillis(milliseconds: number): Timestamp;
    toDate(): Date;
    toMillis(): number;
    isEqual(other: unknown): boolean;
  }

  /** A point on Earth, in degrees. */
  class GeoPoint {
    constructor(latitude: number, longitude: number);
    readonly latitude: number;
    readonly longitude: number;
    isEqual(other: unknown): boolean;
  }

  /** A reference to a document: a path in the same database, or a full resource name (`projects/…`). */
  class DocumentReference {
    constructor(path: string);
    readonly path: string;
    readonly id: string;
    /** The path of the collection that holds it. */
    readonly collection: string;
    isEqual(other: unknown): boolean;
  }

  class Bytes {
    private constructor();
    static fromUint8Array(array: Uint8Array): Bytes;
    static fromBase64String(base64: string): Bytes;
    readonly length: number;
    toUint8Array(): Uint8Array;
    toBase64(): string;
    isEqual(other: unknown): boolean;
  }

  /** A vector for nearest-neighbour searches. Its numbers are doubles. */
  class Vector {
    constructor(values: number[]);
    readonly length: number;
    toArray(): number[];
    isEqual(other: unknown): boolean;
  }

  /**
   * A double, also where an integer is stored or nothing. Without it a number takes the type of the value stored at the same
   * place; where none is, a whole number up to 2^53 is an integer and everything else a double. A `bigint` is an integer.
   */
  interface Double {
    readonly value: number;
    valueOf(): number;
  }
  const Double: { (value: number): Double; new (value: number): Double };

  /** Values that say what is to be done to what is stored. */
  class FieldValue {
    private constructor();
    /** The database's time when the write is made, to the millisecond. */
    static serverTimestamp(): FieldValue;
    /** Takes the field away: in `update`, and in `set` with `merge`. */
    static delete(): FieldValue;
    /** Adds to the number that is there. Counts once, also where a request has to be repeated. */
    static increment(by: number | bigint | Double): FieldValue;
    /** Adds what the array does not have. */
    static arrayUnion(...elements: firebank.Value[]): FieldValue;
    /** Takes out what equals these. */
    static arrayRemove(...elements: firebank.Value[]): FieldValue;
  }

  namespace firebank {
    /** What a field can hold. Reading gives integers beyond 2^53 as `bigint`, all other numbers as `number`. */
    type Value =
      | null | boolean | number | bigint | string
      | Timestamp | Date | GeoPoint | DocumentReference | Bytes | Uint8Array | Vector | Double | FieldValue
      | Value[] | { [key: string]: Value };

    /** A document's fields, to be written. */
    type Data = { [field: string]: Value };

    /** A document's fields as they were read. Yours to change; nothing is written by that alone. */
    type Fields = { [field: string]: any };

    /** A document as it was when it was read. */
    interface Document {
      /** `products/p1`, relative to the database's root. */
      readonly path: string;
      readonly id: string;
      /** The path of the collection that holds it. */
      readonly collection: string;
      readonly ref: DocumentReference;
      readonly data: Fields;
      readonly createTime: Timestamp;
      readonly updateTime: Timestamp;
      /** Changes fields: see `Database.update`. If the document is deleted by then, nothing is done. */
      update(changes: Data): void;
      /** Replaces the document, or merges into it: see `Database.set`. */
      set(data: Data, options?: SetOptions): void;
      delete(): void;
    }

    interface SetOptions {
      /** Puts the data over what is there, maps into maps, instead of replacing it. */
      merge?: boolean;
    }

    type Operator =
      | "<" | "<=" | "==" | "!=" | ">=" | ">"
      | "array-contains" | "array-contains-any" | "in" | "not-in";

    /** A field path (`address.city`, or `` `odd key`.x ``; `__name__` is the document's path), an operator, and with what to compare. */
    type Condition = [field: string, operator: Operator, value: Value];

    type Order = string | [field: string, direction: "asc" | "desc"];

    /** Which documents of a collection. Firestore's rules for queries and indexes hold. */
    interface QueryOptions {
      /** All of them must hold. */
      where?: Condition[] | Condition;
      /** The order of names where it is left away (of the compared fields where `where` has an inequality). */
      orderBy?: Order | Order[];
      limit?: number;
      /** All collections with this name, wherever they are. */
      group?: boolean;
    }

    /**
     * The database, as `migrate`, `rollback` and `validate` get it. A collection argument is a path: `products` or
     * `users/u1/orders`.
     *
     * Writes are sent in batches while the script goes on, in the order in which they were asked for as far as one document is
     * concerned. One that the database refuses ends the migration; it cannot be caught. What a document was is kept before it is
     * written, so that the migration can be undone.
     */
    interface Database {
      /** Whether nothing will be written. What is read then has what would have been written, but for new documents in loops. */
      readonly dryRun: boolean;
      /** What was given with `--set key=value`. */
      readonly settings: { readonly [key: string]: string };
      /** The project's id. */
      readonly project: string;

      /** A document as it is now, the script's own writes included; `null` where there is none. */
      get(path: string): Document | null;
      /**
       * Makes a document: of this path, or with a random id where the path is a collection's. Returns the document's path. It is
       * an error if the document exists.
       */
      create(path: string, data: Data): string;
      /** Makes a document what `data` says, whatever is there. */
      set(path: string, data: Data, options?: SetOptions): void;
      /** Changes fields of a document, which must exist. Keys are field paths: `{ "ui.theme": "dark" }`. */
      update(path: string, changes: Data): void;
      /** Deletes a document, if it exists; not what is below it. */
      delete(path: string): void;

      /**
       * The documents of a collection, read as the loop goes on, however many there are. As they are when the loop begins:
       * what is written while it runs is not seen. (One that takes longer than the database keeps its past, an hour or with
       * point-in-time recovery seven days, goes on with what the database holds then.)
       */
      documents(collection: string, options?: QueryOptions): Generator<Document, void, undefined>;
      /** The documents of all collections with this name. */
      collectionGroup(name: string, options?: QueryOptions): Generator<Document, void, undefined>;
      /** How many documents there are now, the script's own writes included. */
      count(collection: string, options?: QueryOptions): number;

      /** Gives a field to the documents that do not have it. Returns how many. */
      addField(
        collection: string, field: string,
        value: Value | ((data: Fields, doc: Document) => Value), options?: QueryOptions,
      ): number;
      /** Moves a field's value, as it is, to another name. An error where that is taken. Returns in how many documents. */
      renameField(collection: string, from: string, to: string, options?: QueryOptions): number;
      /** Takes a field away. Returns from how many documents. */
      removeField(collection: string, field: string, options?: QueryOptions): number;
      /**
       * Makes each document what the function returns: the whole document, so a key that is missing is deleted; `undefined` for no
       * change. Only fields that differ are written. The function may run again on a document that somebody else has changed
       * meanwhile. Returns how many documents changed.
       */
      transform(
        collection: string, change: (data: Fields, doc: Document) => Data | undefined | void, options?: QueryOptions,
      ): number;

      /** Makes a collection by writing its schema as the document `_schema`. Returns that document's path. */
      createCollection(collection: string, schema?: Data): string;
      /** Copies a collection and everything below it, values as they are. Returns how many documents. */
      copyCollection(from: string, to: string): number;
      /** The same, and takes the originals away: each after its copy is there. */
      moveCollection(from: string, to: string): number;
      /** Deletes a collection and everything below it. Returns how many documents. */
      deleteCollection(collection: string): number;

      /** Fails unless it holds. */
      assert(holds: unknown, message?: unknown): void;
      /** Fails unless the two are equal, values of Firestore's classes included. */
      assertEqual(found: unknown, expected: unknown, message?: string): void;
      /** Fails unless there is such a document, and returns it. */
      assertExists(path: string): Document;
      assertMissing(path: string): void;
      /** Fails unless each of the collections has a document. */
      assertNotEmpty(...collections: (string | string[])[]): void;
      /** Fails unless the function says so of every document. Returns how many there are. */
      assertEvery(
        collection: string, holds: (data: Fields, doc: Document) => unknown, options?: QueryOptions,
      ): number;

      log(...parts: unknown[]): void;
      debug(...parts: unknown[]): void;
      warn(...parts: unknown[]): void;
      error(...parts: unknown[]): void;
    }
  }
}
