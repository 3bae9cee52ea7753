// Changes the data: each product gets what a search looks for, made of what it has.

export const description = "Products can be searched by name and by what is running low";

export function migrate(db) {
  const changed = db.transform("products", (product, doc) =>
    doc.id === "_schema" ? undefined : { ...product, search_name: product.name.toLowerCase(), low_stock: product.stock < 5 });
  db.update("products/_schema", { schema_version: 3, "fields.search_name": "string", "fields.low_stock": "boolean" });
  db.log(`${changed} products`);
}

export function validate(db) {
  db.assertEvery("products", (product, doc) =>
    doc.id === "_schema" || (product.search_name === product.name.toLowerCase() && typeof product.low_stock === "boolean"));
}
