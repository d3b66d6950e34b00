"""Models: which there are (`zoo`), their files (`load`), their graphs (`archs`, `export`)."""
