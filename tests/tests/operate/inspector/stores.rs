//! Runs each test with each store. Every test gets a new store.

/// Runs `async fn $rule(store: impl StoreAdmin + Clone)` with each store.
macro_rules! on_every_store {
    ($($rule:ident),+ $(,)?) => { $(
        mod $rule {
            use idempotent_tests::stores;

            #[tokio::test]
            async fn memory() {
                super::$rule(idempotent_runtime::store::MemoryStore::new()).await;
            }

            #[tokio::test]
            async fn sqlite() {
                let (store, _folder) = stores::sqlite().await;
                super::$rule(store).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::$rule(stores::postgres(10).await).await;
            }

            #[tokio::test]
            async fn redis() {
                super::$rule(stores::redis().await).await;
            }

            #[tokio::test]
            async fn redis_cluster() {
                super::$rule(stores::redis_cluster().await).await;
            }
        }
    )+ };
}
pub(crate) use on_every_store;
