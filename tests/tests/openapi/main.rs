//! What a document of OpenAPI says of annotated handlers.

mod aide;
mod utoipa;
