mod leases;
mod locked_files;
mod open;
mod promises;
mod sharing;
