"use strict";

function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/** A field's type in words. */
function kind(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.oneOf) return [...new Set(schema.oneOf.map(kind))].join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  if (schema.type === "object") return `{${Object.keys(schema.properties).join(", ")}}`;
  return { string: "text", integer: "whole number", boolean: "true | false" }[schema.type] ?? schema.type;
}

/** Text in which words between backticks are code. */
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? make("code", "", part) : part));
}

function fields(schema) {
  const list = make("dl", "fields");
  for (const [name, field] of Object.entries(schema.properties)) {
    const facts = [kind(field)];
    if (schema.required.includes(name)) facts.push("must be given");
    if (field.default !== undefined) facts.push(`default ${JSON.stringify(field.default)}`);
    list.append(make("dt", "", make("code", "", name), ` ${facts.join(", ")}`));
    list.append(make("dd", "", ...prose(field.description)));
  }
  return list;
}

function operation(method, path, data) {
  const section = make("section", "operation", make("h2", "", `${method.toUpperCase()} ${path}`), make("p", "", ...prose(data.summary)));
  const content = data.requestBody?.content["application/json"];
  const body = content ? ` -H 'Content-Type: application/json' -d '${JSON.stringify(content.example)}'` : "";
  const verb = method === "get" || (method === "post" && content) ? "" : ` -X ${method.toUpperCase()}`;
  if (content) section.append(fields(content.schema));
  section.append(make("pre", "code", `curl -s${verb} ${location.origin}${path}${body}`));
  return section;
}

async function begin() {
  const main = document.getElementById("operations");
  try {
    const data = await (await fetch("openapi.json")).json();
    document.title = data.info.title;
    for (const [path, methods] of Object.entries(data.paths)) {
      for (const [method, one] of Object.entries(methods)) main.append(operation(method, path, one));
    }
    const list = make("ul");
    for (const [status, response] of Object.entries(data.paths["/rerank"].post.responses)) {
      list.append(make("li", "", make("b", "", status), ` ${response.description}`));
    }
    const shape = "An error is {error, error_type, message, detail}, all of them texts.";
    main.append(make("section", "operation", make("h2", "", "Answers"), make("p", "", shape), list));
  } catch {
    const problem = document.getElementById("problem");
    problem.textContent = "The description could not be read from the server.";
    problem.hidden = false;
  }
}

begin();
