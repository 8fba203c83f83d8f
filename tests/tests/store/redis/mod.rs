mod given_back;
mod listing;
mod prefixes;
mod promises;
mod rights;
