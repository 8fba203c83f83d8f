//! Recipe 15 of docs/cookbook.md.

use axum::{Router, http::StatusCode, routing::get};
use idempotent_runtime::{idempotent, metrics, store::MemoryStore};
use metrics_exporter_prometheus::PrometheusBuilder;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

#[idempotent(scope = "charges", cache = [201], required)]
#[utoipa::path(post, path = "/charges", responses((status = 201, body = String)))]
async fn create_charge(order: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charged for {order}\n"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let recorder = PrometheusBuilder::new().install_recorder()?; // Before `install`.
    let metrics_page = move || async move {
        metrics::refresh();
        recorder.render()
    };
    idempotent_runtime::install(MemoryStore::new())?;
    let (routes, document) = OpenApiRouter::new().routes(routes!(create_charge)).split_for_parts();
    let app: Router =
        routes.merge(SwaggerUi::new("/docs").url("/openapi.json", document)).route("/metrics", get(metrics_page)); // Where your clients do not come.
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?)
}
