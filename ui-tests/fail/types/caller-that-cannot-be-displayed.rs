use axum::Json;
use idempotent_runtime::idempotent;

#[derive(serde::Deserialize)]
struct User {
    name: String,
}

#[idempotent(caller = user)]
async fn create_charge(Json(user): Json<User>) -> String {
    user.name
}

fn main() {}
