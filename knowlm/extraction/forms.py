"""How a task is asked and how its answer is written, in English and Chinese."""

import json
from collections.abc import Sequence

TASKS = ("NER", "RE", "EE")
FORMS = ("tuple", "json")
NOTHING = "NAN"  # the published answer for "nothing found"

# The words of each task; {schema} and {form} are filled in. Several per task, so that
# a model does not learn one by heart.
INSTRUCTIONS = {
    ("NER", "english"): (
        "Find the entities of these types in the input: {schema}. Answer {form}.",
        "Entity types: {schema}. List every entity of these types that the input names. Answer {form}.",
        "Which words of the input name one of {schema}? Answer {form}.",
    ),
    ("RE", "english"): (
        "Find the facts in the input that use these relations: {schema}. Answer {form}.",
        "Relations: {schema}. List every triple of these relations that the input states. Answer {form}.",
        "Which entities of the input are linked by {schema}? Answer {form}.",
    ),
    ("EE", "english"): (
        "Find the events of these types in the input, with trigger and arguments: {schema}. Answer {form}.",
        "Event types and roles: {schema}. List the events that the input reports. Answer {form}.",
    ),
    ("NER", "chinese"): (
        "找出输入中属于以下类型的实体：{schema}。{form}。",
        "实体类型：{schema}。列出输入提到的这些类型的全部实体。{form}。",
        "输入里哪些词语属于{schema}？{form}。",
    ),
    ("RE", "chinese"): (
        "找出输入中符合以下关系的事实：{schema}。{form}。",
        "关系：{schema}。列出输入陈述的这些关系的全部三元组。{form}。",
        "输入里哪些实体之间有{schema}的关系？{form}。",
    ),
    ("EE", "chinese"): (
        "找出输入中属于以下类型的事件及其触发词和论元：{schema}。{form}。",
        "事件类型与论元角色：{schema}。列出输入报道的事件。{form}。",
    ),
}

ANSWER_FORMS = {
    ("NER", "english", "tuple"): "as (entity,type), one a line",
    ("RE", "english", "tuple"): "as (head,relation,tail), one a line",
    ("EE", "english", "tuple"): "as (trigger,type,[(argument,role)]), one a line",
    ("NER", "chinese", "tuple"): "每行一个，写成(实体,类型)",
    ("RE", "chinese", "tuple"): "每行一个，写成(头实体,关系,尾实体)",
    ("EE", "chinese", "tuple"): "每行一个，写成(触发词,事件类型,[(论元,角色)])",
    ("NER", "english", "json"): 'as a JSON list of {"text","type"}',
    ("RE", "english", "json"): 'as a JSON list of {"head","relation","tail"}',
    ("EE", "english", "json"): 'as a JSON list of {"type","trigger","arguments":[{"text","role"}]}',
    ("NER", "chinese", "json"): '写成由{"text","type"}组成的JSON列表',
    ("RE", "chinese", "json"): '写成由{"head","relation","tail"}组成的JSON列表',
    ("EE", "chinese", "json"): '写成由{"type","trigger","arguments":[{"text","role"}]}组成的JSON列表',
}


def render(task: str, schema: Sequence, form: str = "tuple", language: str = "english", variant: int = 0) -> str:
    """The instruction that asks for ``task`` with ``schema``, the answer to be in ``form``.

    >>> render("NER", ["person"])
    'Find the entities of these types in the input: person. Answer as (entity,type), one a line.'

    variant: which wording; any number. Raises ValueError on an unknown task, form or language.
    """
    if (task, language, form) not in ANSWER_FORMS:
        raise ValueError(
            f"no {task} instruction in {language} for form {form}; tasks are {', '.join(TASKS)}, "
            f"forms {', '.join(FORMS)}, languages english and chinese"
        )
    joint = "、" if language == "chinese" else ", "
    if task == "EE":
        labels = joint.join(f"{event['type']}({joint.join(event['roles'])})" for event in schema)
    else:
        labels = joint.join(schema)
    wordings = INSTRUCTIONS[task, language]
    return wordings[variant % len(wordings)].format(schema=labels, form=ANSWER_FORMS[task, language, form])


def write_answer(task: str, items: Sequence[dict], form: str = "tuple") -> str:
    """The answer that a perfect model gives; ``parse`` reads it back.

    >>> write_answer("RE", [{"head": "Paris", "relation": "country", "tail": "France"}])
    '(Paris,country,France)'
    """
    if not items:
        return NOTHING if form == "tuple" else "[]"
    if form == "json":
        return json.dumps(list(items), ensure_ascii=False)
    if task == "NER":
        return "\n".join(f"({item['text']},{item['type']})" for item in items)
    if task == "RE":
        return "\n".join(f"({item['head']},{item['relation']},{item['tail']})" for item in items)
    lines = []
    for item in items:
        arguments = ",".join(f"({argument['text']},{argument['role']})" for argument in item["arguments"])
        lines.append(f"({item['trigger']},{item['type']},[{arguments}])")
    return "\n".join(lines)
