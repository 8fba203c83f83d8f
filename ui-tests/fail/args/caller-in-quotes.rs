use idempotent_runtime::idempotent;

struct User {
    id: u64,
}

#[idempotent(scope = "a", caller = "user.id")]
async fn by_field(axum::Extension(user): axum::Extension<User>) {}

#[idempotent(scope = "b", key = "order")]
async fn by_name(order: String) {}

#[idempotent(scope = "c", fingerprint = "jsn")]
async fn by_word(order: String) {}

#[idempotent(scope = "d", caller = "everyone")]
async fn constant(order: String) {}

fn main() {}
