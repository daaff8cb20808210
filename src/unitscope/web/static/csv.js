// Tables that a page makes: CSV (RFC 4180) in UTF-8, as downloads.py writes it.
"use strict";
{
  // Texts that a spreadsheet would take for formulas begin with an apostrophe; numbers are left alone.
  function cell(value) {
    const text = typeof value === "number" ? String(value) : /^(\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]|[\t\r\n])/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  // Has the browser save a file of that name.
  window.unitscopeSave = (name, content, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  // Rows of texts and numbers, of which the first has the columns' names.
  window.unitscopeSaveCsv = (name, rows) => window.unitscopeSave(name, rows.map((row) => `${row.map(cell).join(",")}\r\n`).join(""), "text/csv");
}
