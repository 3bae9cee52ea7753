// A migration runs once on each database, in the order of the numbers in the files' names:
//   firebank migrate --dry-run     shows what it would change, and changes nothing
//   firebank migrate               runs it; if it fails, everything that it wrote is undone
//   firebank rollback              takes it back
// Do not change it once it has run anywhere: write the next one. `firebank.d.ts` has all of `db` for your editor.

export const description = "DESCRIPTION";

export function migrate(db) {
  // db.createCollection("coupons", { fields: { code: "string" }, indexes: ["code"] });
  // db.addField("products", "currency", "EUR");           // only where it is missing
  // db.transform("products", (data) => ({ ...data, name: data.name.trim() }));
  // for (const doc of db.documents("orders", { where: [["total", "==", null]] })) doc.delete();
  db.log("nothing to do yet");
}

// Optional. Without it, `firebank rollback` puts back every document as it was before.
// export function rollback(db) {}

// Optional. It runs after migrate(): what it throws, or `return false`, fails the migration.
export function validate(db) {
  // db.assert(db.count("products") > 0, "there are no products");
}
