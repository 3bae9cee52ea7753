// The collections of a retail shop, each with a document `_schema` that says what its documents hold.

export const description = "The standard collections";

const text = "string";
const collections = {
  products: {
    description: "Product catalog and inventory",
    fields: { name: text, category: text, price: "number", stock: "number", created_at: "timestamp" },
    indexes: ["category", "price"],
  },
  users: {
    description: "User accounts and authentication",
    fields: { email: "string (required, unique)", name: text, role: "string (customer/staff/admin)", created_at: "timestamp" },
    indexes: ["email"],
  },
  feedback: {
    description: "User feedback and reviews",
    fields: { user_id: text, product_id: text, rating: "number (1-5)", comment: text, created_at: "timestamp" },
    indexes: ["product_id", "rating"],
  },
  orders: {
    description: "Order management and tracking",
    fields: { user_id: text, items: "array", total: "number", status: text, placed_at: "timestamp" },
    indexes: ["user_id", "status"],
  },
  analytics: {
    description: "Analytics data and metrics",
    fields: { event: text, value: "number", recorded_at: "timestamp" },
    indexes: ["event"],
  },
  recommendations: {
    description: "AI-generated recommendations",
    fields: { user_id: text, product_ids: "array", score: "number", created_at: "timestamp" },
    indexes: ["user_id"],
  },
  categories: {
    description: "Product categories and taxonomy",
    fields: { name: text, parent: "string (optional)" },
    indexes: ["name"],
  },
};

export function migrate(db) {
  for (const [name, schema] of Object.entries(collections)) db.createCollection(name, { schema_version: 1, ...schema });
}

export function rollback(db) {
  for (const name of Object.keys(collections)) db.delete(`${name}/_schema`);
}

export function validate(db) {
  for (const name of Object.keys(collections)) db.assertExists(`${name}/_schema`);
}
