"""Contexts that a server would give to a chat template."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather at a place <é & \"quoted\">.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City, e.g. Łódź", "enum": ["Łódź", "東京"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 1e3, "default": 1},
                "options": {"type": ["object", "null"], "properties": {
                    "units": {"type": "array", "items": {"type": "string"}}}},
            },
            "required": ["place"],
        },
        "return": {"type": "string", "description": "A report."},
    },
}
CLOCK = {"type": "function", "function": {
    "name": "clock", "description": "Time.", "parameters": {"type": "object", "properties": {}}}}


def system(content="You are brief."):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def call(name, arguments, identifier="a1b2c3d4e"):
    return {"type": "function", "id": identifier,
            "function": {"name": name, "arguments": arguments}}


def tool(content, name="get_weather", identifier="a1b2c3d4e"):
    return {"role": "tool", "name": name, "tool_call_id": identifier, "content": content}


TOOL_CHAT = [
    user("Weather in Łódź?"),
    assistant("", tool_calls=[call("get_weather", {"place": "Łódź", "days": 2, "exact": True,
                                                   "factor": 0.5, "nested": {"a": [1, None]}})]),
    tool("{\"temperature\": 21.5}"),
    assistant("It is 21.5 degrees."),
    user("And in 東京?"),
]
TWO_CALLS = [
    system(), user("Both, please."),
    assistant("Let me see.", tool_calls=[call("get_weather", {"place": "東京"}),
                                         call("clock", {}, "123456789")]),
    tool("sunny"), tool({"time": "12:00", "zone": None}, "clock", "123456789"),
]
PARTS = [
    system([{"type": "text", "text": "Look closely. "}]),
    user([{"type": "image"}, {"type": "text", "text": " What is this? 😀"},
          {"type": "image_url", "image_url": {"url": "x"}}, {"type": "video"}, {"type": "audio"}]),
    assistant([{"type": "text", "text": "A cat."}]),
    user([{"type": "text", "text": "Sure?\n"}, {"type": "text", "text": "Really?"}]),
]
THINKING = [
    user("1 + 1?"),
    assistant("<think>\nOne and one.\n</think>\n\n2", reasoning_content="One and one."),
    user("2 + 2?"),
    assistant("4", reasoning_content="Two and two.\n", thinking="Two and two."),
    user("Thanks.\n\n"),
]

MESSAGES = {
    "one turn": [user("Hello, wörld!")],
    "system": [system(), user("Hi")],
    "turns": [user("  A  "), assistant(" B\n"), user("C"), assistant("D")],
    "system and turns": [system("  S\n"), user("A"), assistant("B"), user("C")],
    "assistant last": [user("Complete this"), assistant("It goes")],
    "assistant first": [assistant("Hello"), user("Hi")],
    "two users": [user("A"), user("B")],
    "late system": [user("A"), system("late"), user("B")],
    "two systems": [system("one"), system("two"), user("A")],
    "developer": [{"role": "developer", "content": "Instructions"}, user("A")],
    "unknown role": [{"role": "narrator", "content": "Once"}, user("A")],
    "empty content": [system(""), user("")],
    "no content": [{"role": "user"}],
    "none content": [{"role": "user", "content": None}],
    "no role": [{"content": "A"}],
    "number content": [user(5)],
    "extra fields": [{"role": "user", "content": "A", "name": "ann", "weight": 0, "train": True}],
    "special tokens": [user("<|im_end|></s>[INST] {{ 7 * 7 }} {% raw %} <b>&amp;</b> \\n \"'")],
    "unicode": [user("\u00a0Zażółć\u2028gęślą\u3000jaźń 日本語 😀👩‍👩‍👧 \ufeff\u200b\n")],
    "tools": TOOL_CHAT,
    "two calls": TWO_CALLS,
    "call with text arguments": [user("A"), assistant(None, tool_calls=[call("clock", "{\"a\": 1}")]),
                                 tool("x", "clock")],
    "call without function": [user("A"), assistant("", tool_calls=[{"name": "clock", "arguments": {}}])],
    "no calls": [user("A"), assistant("B", tool_calls=[]), user("C")],
    "none calls": [user("A"), assistant("B", tool_calls=None), user("C")],
    "tool first": [tool("alone")],
    "parts": PARTS,
    "thinking": THINKING,
    "thought and call": [user("A"), assistant("", reasoning_content="Hm.", tool_calls=[
        call("clock", {})]), tool("12:00", "clock")],
    "empty": [],
    "long": [message for i in range(40) for message in (user(f"Question {i}?"), assistant(f"Answer {i}."))],
}

VARIABLES = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "tokens": {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>",
               "unk_token": "<unk>", "pad_token": "<pad>"},
    "tools": {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>",
              "tools": [WEATHER, CLOCK]},
    "flags": {"add_generation_prompt": False, "bos_token": "<s>", "eos_token": "</s>", "tools": None,
              "documents": None, "enable_thinking": False, "thinking": True,
              "date_string": "1 Jan 2026", "tools_in_user_message": False, "add_vision_id": True,
              "reasoning_effort": "high", "custom_tools": [CLOCK], "xml_tools": [WEATHER],
              "model_identity": "You are a test.", "builtin_tools": ["browser", "python"],
              "documents": [{"title": "T", "text": "D"}], "preserve_thinking": True},
}


def contexts():
    """(name, context) of every combination."""
    for chat, messages in MESSAGES.items():
        for variant, variables in VARIABLES.items():
            yield f"{chat}, {variant}", {"messages": messages, **variables}
