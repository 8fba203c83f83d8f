mod leases;
mod locked_files;
mod moved_files;
mod open;
mod promises;
mod sharing;
