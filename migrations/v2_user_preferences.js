// Preferences in a collection of their own: a schema, and a document for each user there is.

export const description = "User preferences and settings";

export function migrate(db) {
  db.createCollection("user_preferences", {
    schema_version: 2,
    description: "User preferences and settings",
    fields: {
      user_id: "string (required, unique)",
      theme: "string (light/dark/auto)",
      language: "string (en/es/fr/de)",
      notification_preferences: "object",
      created_at: "timestamp",
    },
    indexes: ["user_id", "theme"],
  });
  for (const user of db.documents("users")) {
    if (user.id === "_schema") continue;
    db.create(`user_preferences/${user.id}`, {
      user_id: user.id,
      theme: "auto",
      language: "en",
      notification_preferences: { email: true },
      created_at: FieldValue.serverTimestamp(),
    });
  }
}

// There is no rollback(): `firebank rollback` deletes what was created here.

export function validate(db) {
  db.assertEqual(db.count("user_preferences"), db.count("users") + (db.get("users/_schema") ? 0 : 1), "preferences of users");
}
