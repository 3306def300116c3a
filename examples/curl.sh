#!/bin/sh
# The API without any client: a whole answer, a stream, JSON of a schema, an error.
set -eu
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
key=${OPENAI_API_KEY:-none}

ask() {
    curl --silent --show-error --no-buffer "$url/chat/completions" \
        --header "Authorization: Bearer $key" --header "Content-Type: application/json" --data "$1"
    echo
}

echo "== models"
curl --silent --show-error "$url/models" --header "Authorization: Bearer $key"
echo

echo "== a whole answer"
ask '{"model": "glm-5.1", "max_tokens": 24,
      "messages": [{"role": "user", "content": "What time is it?"}]}'

echo "== a stream, with the tokens in its last event"
ask '{"model": "glm-5.1", "max_tokens": 8, "stream": true, "stream_options": {"include_usage": true},
      "messages": [{"role": "user", "content": "What time is it?"}]}'

echo "== JSON of a schema, without reasoning"
ask '{"model": "glm-5.1", "thinking": {"type": "disabled"},
      "messages": [{"role": "user", "content": "Is the sky blue?"}],
      "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": {
          "type": "object", "additionalProperties": false, "required": ["verdict"],
          "properties": {"verdict": {"enum": ["yes", "no", "unknown"]}}}}}}'

echo "== a field that does not exist"
ask '{"model": "glm-5.1", "temprature": 1, "messages": [{"role": "user", "content": "Hello"}]}'
