mod given_back;
mod prefixes;
mod promises;
mod rights;
