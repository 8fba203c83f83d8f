use axum::Router;
use axum::extract::Path;
use axum::routing::post;
use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(body: String, id: Path<u32>) {
    let _ = (body, id);
}

fn main() {
    let _: Router = Router::new().route("/", post(create_charge));
}
