mod answers;
mod batches;
mod connections;
mod given_back;
mod poolers;
mod promises;
mod rights;
mod tls;
