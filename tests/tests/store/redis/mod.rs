mod given_back;
mod index;
mod listing;
mod prefixes;
mod promises;
mod rights;
mod sentinels;
mod tls;
