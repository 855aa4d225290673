// Lists the operations and schemas of openapi.json, without anything from the internet.

const spec = await fetch("openapi.json").then((response) => response.json());

function element(name, text, ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

function table(heads, rows) {
  const head = element("thead", "", element("tr", "", ...heads.map((text) => element("th", text))));
  const body = element("tbody", "", ...rows.map((cells) => element("tr", "", ...cells.map((text) => element("td", text ?? "")))));
  const made = element("div", "", element("table", "", head, body));
  made.className = "scroll";
  return made;
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.const) return schema.const;
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" | ");
  if (schema.prefixItems) return `[${schema.prefixItems.map(typeOf).join(", ")}]`;
  if (schema.type === "array") return `list of ${typeOf(schema.items)}s`;
  if (schema.contentMediaType || schema.format === "binary") return "file";
  return schema.type ?? "";
}

function fields(schema) {
  const required = schema.required ?? [];
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => [
    name, typeOf(field), required.includes(name) ? "yes" : "no", field.description,
  ]);
  return table(["Name", "Type", "Required", "Meaning"], rows);
}

function resolve(schema) {
  return schema.$ref ? spec.components.schemas[typeOf(schema)] : schema;
}

function operation(path, method, described) {
  const made = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", described.description));
  if (described.parameters) {
    const rows = described.parameters.map((parameter) => [parameter.name, typeOf(parameter.schema), parameter.description]);
    made.append(element("h3", "Query"), table(["Name", "Type", "Meaning"], rows));
  }
  for (const [media, { schema }] of Object.entries(described.requestBody?.content ?? {})) {
    made.append(element("h3", `Body, ${media}`), fields(resolve(schema)));
  }
  const rows = Object.entries(described.responses).map(([status, { description, content }]) => [
    status, description, Object.entries(content ?? {}).map(([media, { schema }]) => `${media}: ${schema.title ?? typeOf(schema)}`).join(", "),
  ]);
  made.append(element("h3", "Answers"), table(["Status", "When", "Content"], rows));
  return made;
}

document.getElementById("origin").textContent = new URL(".", location.href).href;
for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, described] of Object.entries(methods)) {
    document.getElementById("operations").append(operation(path, method, described));
  }
}
for (const [name, schema] of Object.entries(spec.components.schemas)) {
  if (!name.startsWith("Body_")) {
    document.getElementById("schemas").append(element("h3", name), element("p", schema.description ?? ""), fields(schema));
  }
}
