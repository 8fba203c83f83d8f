mod open;
mod promises;
mod sharing;
