"""From a source to rows: files, URLs, tables, images; read sources.py first."""
