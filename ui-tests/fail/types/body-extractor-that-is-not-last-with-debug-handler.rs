use axum::Json;
use axum::extract::Path;
use idempotent_runtime::idempotent;

#[axum::debug_handler]
#[idempotent]
async fn create_charge(body: Json<u32>, id: Path<u32>) {
    let _ = (body, id);
}

fn main() {}
