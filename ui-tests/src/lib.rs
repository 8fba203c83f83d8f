//! What the attribute accepts (`pass/`), and what it says to each mistake (`fail/`).
