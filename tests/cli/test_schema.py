import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from jsonargparse import ArgumentParser

from lit_hf.cli import schema
from lit_hf.cli.schema import UnknownClassError, class_options, find_class, known_classes, read_options, required_keys


class Animal(ABC):
    @abstractmethod
    def sound(self): ...


class Dog(Animal):
    def __init__(self, size: int, name: str = "Rex"): ...

    def sound(self): ...


class Puppy(Dog):
    def __init__(self, months: int = 3): ...


class _Hidden(Dog):
    pass


@dataclass
class Food:
    grams: int = field(default=5, metadata={"help": "How much."})


class Kennel:
    def __init__(self, dog: Animal, food: Food = Food(), name: str = "home"): ...  # noqa: B008


HERE = __name__


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Animal, "animal", required=True)
    parser.add_class_arguments(Kennel, "kennel")
    parser.link_arguments("animal", "kennel.dog")
    return parser


def test_options_are_a_tree_of_what_can_be_set(parser):
    options = read_options(parser)
    assert [option.key for option in options.leaves()] == ["animal", "kennel.food.grams", "kennel.name"]
    assert options.options["kennel"].options["dog"].source == "animal"
    assert options.options["animal"].bases == [Animal]
    name = options.options["kennel"].options["name"]
    assert (name.name, name.hint, name.default, name.required, name.admits_null) == ("name", str, "home", False, False)


def test_required_keys_are_those_that_a_user_must_give(parser):
    assert required_keys(parser) == ["animal"]


def test_the_known_classes_are_those_that_can_be_built():
    assert known_classes([Animal]) == {"Dog": Dog, "Puppy": Puppy}
    assert known_classes([Food]) == {"Food": Food}


def test_a_class_s_parameters_are_below_its_block():
    options = class_options(Dog, "animal", Animal)
    assert [(option.key, option.required) for option in options.leaves()] == [
        ("animal.init_args.size", True),
        ("animal.init_args.name", False),
    ]
    assert [option.key for option in class_options(Dog, "animal", Callable[[Iterable], Animal]).leaves()] == [
        "animal.init_args.name"
    ]


def test_plain_settings_are_given_directly_and_documented_by_their_fields():
    (option,) = class_options(Food, "food", Food).leaves()
    assert (option.key, option.action.help) == ("food.grams", "How much.")


def test_classes_are_found_by_name_and_by_path():
    assert find_class("Puppy", [Animal]) is Puppy
    assert find_class(f"{HERE}.Dog", [Animal]) is Dog
    assert find_class(f"{HERE}.make_dog", [Animal]) is make_dog


def make_dog() -> Dog: ...


@pytest.mark.parametrize(
    ("name", "said", "cure"),
    [
        ("Pupy", "there is no Animal named 'Pupy'.", "Did you mean 'Puppy'? There is: Dog, Puppy."),
        (f"{HERE}.dog", f"{HERE} has no 'dog'.", "Did you mean 'Dog'? There is: Dog, Puppy."),
        (f"{HERE}.Kennel", f"{HERE}.Kennel is not a Animal.", "There is: Dog, Puppy."),
        (f"{HERE}.Animal", f"{HERE}.Animal is only a base class.", "There is: Dog, Puppy."),
        (f"{HERE}.HERE", f"{HERE}.HERE is not a class.", "There is: Dog, Puppy."),
        ("no_such.Dog", "no_such.Dog cannot be imported: there is no module 'no_such'.", "Did you mean 'Dog'?"),
        (
            "needy.Dog",
            "needy.Dog cannot be imported: it needs the module 'no_such'.",
            "Install it: pip install no_such.",
        ),
        ("broken.Dog", "broken.Dog cannot be imported: SyntaxError: ", ""),
    ],
)
def test_a_class_that_is_not_there_is_told_with_its_cure(tmp_path, monkeypatch, name, said, cure):
    (tmp_path / "needy.py").write_text("import no_such.inner\n")
    (tmp_path / "broken.py").write_text("def :\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownClassError) as caught:
        find_class(name, [Animal])
    assert str(caught.value).startswith(said)
    assert caught.value.cure.startswith(cure)
    sys.modules.pop("needy", None)


def test_a_long_list_of_names_is_left_to_the_help():
    names = [f"name{number}" for number in range(schema.LONGEST_LIST + 1)]
    assert schema.suggest("Name3", names) == "Did you mean 'name3'?"
    assert schema.suggest("xyz", names) == ""
    assert schema.suggest("B", ["b", "c"]) == "Did you mean 'b'? There is: b, c."
