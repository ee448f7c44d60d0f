"""Print where a model looked."""

from edgecnn.device.explain import explain, in_words
from edgecnn.runtime import Classifier

classifier = Classifier.load("photos.edgecnn")
found = explain("photo.jpg", classifier)
print(found.answer, in_words(found.box), found.map.shape)
